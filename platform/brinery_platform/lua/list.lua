-- owner, endpoint or '', status or '', sequence to stay below or '+inf', most tasks, most records read, field names
-- -> {next sequence or '', values of the fields...}, newest first
local owner, endpoint, status = ARGV[1], ARGV[2], ARGV[3]
local limit, scan = tonumber(ARGV[5]), tonumber(ARGV[6])
local ids = redis.call('ZREVRANGEBYSCORE', 'tasks:' .. owner, '(' .. ARGV[4], '-inf', 'WITHSCORES', 'LIMIT', 0, scan)
local found = { '' }
for position = 1, #ids, 2 do
  local key = 'task:' .. ids[position]
  local its_endpoint, its_status = unpack(redis.call('HMGET', key, 'endpoint_id', 'status'))
  if its_status and (endpoint == '' or endpoint == its_endpoint) and (status == '' or status == its_status) then
    found[#found + 1] = redis.call('HMGET', key, unpack(ARGV, 7))
  end
  if #found > limit or position + 1 == 2 * scan then
    found[1] = ids[position + 1]
    break
  end
end
return found
