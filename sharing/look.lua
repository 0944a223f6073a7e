-- Looks for the pause and for events, and takes the locks of events that nobody loads.
-- Returns {now, what is left of the pause, {one of these for each event}}:
--   {answer, what is left of it} if that is more than `least`
--   'load' if this took the event's lock or already had it
--   'wait' if another instance has the lock
-- A key that holds another type than a string counts as an invalid answer, or as a free
-- lock. Times are in milliseconds.
-- KEYS: pause; then for each event: answer, lock.
-- ARGV: our token, how long a lock lasts, least.
local token = ARGV[1]
local lease = ARGV[2]
local least = tonumber(ARGV[3])

local function look(answer, lock)
  local left = redis.call('pttl', answer)
  if left > least then
    local content = redis.pcall('get', answer)
    if type(content) ~= 'string' then content = '' end
    return {content, left}
  end
  local holder = redis.pcall('get', lock)
  if type(holder) == 'string' and holder ~= token then return 'wait' end
  redis.call('set', lock, token, 'px', lease)
  return 'load'
end

local sights = {}
for i = 1, (#KEYS - 1) / 2 do
  sights[i] = look(KEYS[2 * i], KEYS[2 * i + 1])
end
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return {now, redis.call('pttl', KEYS[1]), sights}
