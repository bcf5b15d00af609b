-- endpoint or '', sequence to stay below or '+inf', most tasks, most records read, number of indexes, indexes..., names
-- of fields... -> {next sequence or '', values of the fields...}, newest first, merged from all the indexes
local endpoint, below = ARGV[1], ARGV[2]
local limit, scan, indexes = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local step = math.min(scan, endpoint == '' and limit or 200)
local found, read = { '' }, 0
local heads = {}

local function refill(head)
  head.ids = redis.call('ZREVRANGEBYSCORE', head.key, '(' .. head.below, '-inf', 'WITHSCORES', 'LIMIT', 0, step)
  head.at = 1
end

for index = 1, indexes do
  local head = { key = ARGV[5 + index], below = below }
  refill(head)
  heads[#heads + 1] = head
end

while #found <= limit do
  local newest, sequence = nil, nil
  for _, head in ipairs(heads) do
    if head.at > #head.ids and #head.ids == 2 * step then
      refill(head)
    end
    local score = tonumber(head.ids[head.at + 1])
    if score and (not sequence or score > sequence) then
      newest, sequence = head, score
    end
  end
  if not newest then
    return found
  end
  local id = newest.ids[newest.at]
  newest.below = newest.ids[newest.at + 1]
  newest.at = newest.at + 2
  read = read + 1
  local key = 'task:' .. id
  if endpoint == '' or redis.call('HGET', key, 'endpoint_id') == endpoint then
    found[#found + 1] = redis.call('HMGET', key, unpack(ARGV, 6 + indexes))
  end
  if #found > limit or read == scan then
    found[1] = newest.below
    return found
  end
end
return found
