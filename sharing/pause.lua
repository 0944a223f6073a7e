-- Says when the pause ends, unless it is known to last longer. KEYS: pause. ARGV: its end in Redis's milliseconds.
if tonumber(ARGV[1]) <= (tonumber(redis.pcall('get', KEYS[1])) or 0) then return 0 end
redis.call('set', KEYS[1], ARGV[1])
return redis.call('pexpireat', KEYS[1], ARGV[1])
