-- Uses each command that the other scripts use, so that a missing right is noticed
-- before anything depends on it.
-- Returns 'usable', or the first error with the name of its command.
-- KEYS: one of each kind that the other scripts use.
local failure
local function try(command, ...)
  local reply = redis.pcall(command, ...)
  if type(reply) == 'table' and reply.err then
    failure = failure or reply.err .. " ('" .. command .. "' command)"
  end
  return reply
end

local time = try('time')
try('set', KEYS[1], 'usable', 'px', 60000)
-- A minute: the next second may begin before this line, and the key would be gone.
try('pexpireat', KEYS[1], ((time[1] or 0) + 60) * 1000)
try('pttl', KEYS[1])
local content = try('get', KEYS[1])
try('del', KEYS[1])
if failure then return redis.error_reply(failure) end
return content
