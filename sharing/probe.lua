-- Uses each command that the other scripts use, so that a missing right is noticed
-- before anything depends on it. Returns 'usable'.
-- KEYS: one of each kind that the other scripts use.
local time = redis.call('time')
redis.call('set', KEYS[1], 'usable', 'px', 60000)
-- A minute: the next second may begin before this line, and the key would be gone.
redis.call('pexpireat', KEYS[1], (time[1] + 60) * 1000)
redis.call('pttl', KEYS[1])
local content = redis.call('get', KEYS[1])
redis.call('del', KEYS[1])
return content
