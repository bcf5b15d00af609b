-- batch -> {id, attempt, input object or '', ...} of tasks whose result has been kept long enough
local found = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'retention', '-inf', text(now()), 'LIMIT', 0, tonumber(ARGV[1]))) do
  local attempt, input = unpack(redis.call('HMGET', 'task:' .. id, 'attempt', 'input_object'))
  found[#found + 1] = id
  found[#found + 1] = attempt or '0'
  found[#found + 1] = input or ''
end
return found
