-- Stores answers that were loaded, and releases their locks; an event whose lock isn't
-- held any more is left alone. Stores the pause, unless it is known to last longer.
-- A fault replaces no answer: it would cut short what is left of a good one.
-- Times are in milliseconds by Redis's clock.
-- KEYS: pause; then for each event: answer, lock.
-- ARGV: our token, the end of the pause or 0; then for each event: the answer or
-- nothing, when it expires, its kind.
local token = ARGV[1]
local pause_end = ARGV[2]

local function store(answer, lock, content, expiry, kind)
  if redis.pcall('get', lock) ~= token then return end
  redis.call('del', lock)
  if content == '' then return end
  local is_fault = kind == 'fault' or kind == 'paused'
  if is_fault and redis.call('pttl', answer) > 0 then return end
  redis.call('set', answer, content)
  redis.call('pexpireat', answer, expiry)
end

for i = 1, (#KEYS - 1) / 2 do
  store(KEYS[2 * i], KEYS[2 * i + 1], ARGV[3 * i], ARGV[3 * i + 1], ARGV[3 * i + 2])
end
-- After the locks: a full Redis refuses the first thing to store in a script.
local known = tonumber(redis.pcall('get', KEYS[1])) or 0
if tonumber(pause_end) > known then
  redis.call('set', KEYS[1], pause_end)
  redis.call('pexpireat', KEYS[1], pause_end)
end
