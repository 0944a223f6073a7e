-- Requests random ids below a number. Arguments: the path in front of the id, the number.
local prefix, most

function init(args)
  prefix, most = args[1], tonumber(args[2])
end

function request()
  return wrk.format("GET", string.format("%s%032x_14602021609581", prefix, math.random(0, most - 1)))
end
