-- Makes the lock last longer if it is still held. KEYS: lock. ARGV: our token, milliseconds that it lasts.
if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2]) end
