-- Returns Redis's time, the answer and what is left of it; or the time alone if this took the lock; or else nothing.
-- A key that holds another type than a string is treated as an invalid answer.
-- KEYS: answer, lock. ARGV: our token, milliseconds that the lock lasts.
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local left = redis.call('pttl', KEYS[1])
local answer = left ~= 0 and redis.pcall('get', KEYS[1])
if answer then return {now, type(answer) == 'string' and answer or '', left} end
local holder = redis.pcall('get', KEYS[2])
if type(holder) == 'string' and holder ~= ARGV[1] then return {} end
redis.call('set', KEYS[2], ARGV[1], 'px', ARGV[2])
return {now}
