-- Releases the lock and stores the answer if there is one, but only if the lock is still held.
-- KEYS: answer, lock. ARGV: our token, the answer or nothing, when it expires in Redis's milliseconds.
if redis.call('get', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('del', KEYS[2])
if ARGV[2] == '' then return 1 end
redis.call('set', KEYS[1], ARGV[2])
return redis.call('pexpireat', KEYS[1], ARGV[3])
