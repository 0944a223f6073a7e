-- Asks for ids below a prefix: in turn from `low` on, or at random up to `high`. Arguments: prefix, low, high ("": in turn)
local prefix, low, high

function init(args)
  prefix, low, high = args[1], tonumber(args[2]), tonumber(args[3])
end

function request()
  local id = low
  if high then id = math.random(low, high) else low = low + 1 end
  return wrk.format("GET", string.format("%s%032x_14602021609581", prefix, id))
end
