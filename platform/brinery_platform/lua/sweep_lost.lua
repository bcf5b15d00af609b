-- batch, grace in seconds, endpoint... -> messages published again. A message is lost when its task waits, nobody
-- holds it, and the message at the queue's head was published after it. Each further copy waits twice as long.
local batch, grace = tonumber(ARGV[1]), tonumber(ARGV[2])
local at = now()
local published = 0
for index = 3, #ARGV do
  local endpoint = ARGV[index]
  for rank = 0, 9 do
    local first = redis.call('ZRANGE', waiting_key(endpoint, rank), 0, batch - 1, 'WITHSCORES')
    local head = nil
    if #first > 0 then
      head = redis.call('LINDEX', queue_key(endpoint, rank), -1)
    end
    local head_sequence = math.huge
    if head then
      local decoded, content = pcall(cjson.decode, head)
      head_sequence = decoded and content.headers and tonumber(content.headers.brinery_sequence) or 0
    end
    for position = 1, #first, 2 do
      local id, sequence = first[position], tonumber(first[position + 1])
      if sequence >= head_sequence then
        break
      end
      local at_text, copies, holder =
        unpack(redis.call('HMGET', 'task:' .. id, 'published_at', 'messages', 'holder'))
      local patience = math.min(300, grace * 2 ^ (tonumber(copies) - 1))
      if at - tonumber(at_text) > patience and not alive(holder) then
        redis.call('HINCRBY', 'task:' .. id, 'messages', 1)
        publish(id, endpoint, rank, at)
        published = published + 1
      end
    end
  end
end
return published
