-- Releases the lock and stores the answer if there is one, but only if the lock is still held.
-- A fault replaces no answer: it would cut short what is left of a good one.
-- KEYS: answer, lock. ARGV: our token, the answer or nothing, when it expires in Redis's milliseconds, its kind.
if redis.call('get', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('del', KEYS[2])
if ARGV[2] == '' then return 1 end
local is_fault = ARGV[4] == 'fault' or ARGV[4] == 'paused'
if is_fault and redis.call('pttl', KEYS[1]) > 0 then return 1 end
redis.call('set', KEYS[1], ARGV[2])
return redis.call('pexpireat', KEYS[1], ARGV[3])
