-- batch -> {id, input object or '', result object or '', ...} of tasks whose result has been kept long enough
local found = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'retention', '-inf', text(now()), 'LIMIT', 0, tonumber(ARGV[1]))) do
  local input, result = unpack(redis.call('HMGET', 'task:' .. id, 'input_object', 'result_object'))
  found[#found + 1] = id
  found[#found + 1] = input or ''
  found[#found + 1] = result or ''
end
return found
