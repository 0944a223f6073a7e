-- Returns {'answer', now, content, left} if more than `least` milliseconds are left of the answer;
-- {'load', now} if this took the lock or already had it; {'wait', now} if another instance has it.
-- A key that holds another type than a string counts as an invalid answer, or as a free lock.
-- KEYS: answer, lock. ARGV: our token, milliseconds that the lock lasts, least.
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local left = redis.call('pttl', KEYS[1])
if left > tonumber(ARGV[3]) then
  local content = redis.pcall('get', KEYS[1])
  return {'answer', now, type(content) == 'string' and content or '', left}
end
local holder = redis.pcall('get', KEYS[2])
if type(holder) == 'string' and holder ~= ARGV[1] then return {'wait', now} end
redis.call('set', KEYS[2], ARGV[1], 'px', ARGV[2])
return {'load', now}
