-- batch, endpoint... -> tasks moved up. What has stood at the head of its queue for too long gains one rank, and its
-- message moves behind those of the next one: whatever comes meanwhile, it is served at last. A message that has
-- nothing more to say is taken away, or those behind it would never be heads.
local batch = tonumber(ARGV[1])
local at = now()
local moved = 0
for index = 2, #ARGV do
  local endpoint = ARGV[index]
  for rank = 8, 0, -1 do
    local queue = queue_key(endpoint, rank)
    while moved < batch do
      local head = redis.call('LINDEX', queue, -1)
      local decoded, content = pcall(cjson.decode, head or '')
      local id = decoded and content.headers and content.headers.id
      if not id then
        break
      end
      local status, published, age, in_rank, not_before = unpack(redis.call('HMGET', 'task:' .. id,
        'status', 'published_at', 'priority_age_seconds', 'rank', 'not_before'))
      local waits = status == 'queued' and not not_before and tonumber(in_rank) == rank
      if waits and at - tonumber(published) < tonumber(age) then
        break
      end
      redis.call('RPOP', queue)
      if waits then
        redis.call('ZREM', waiting_key(endpoint, rank), id)
        publish(id, endpoint, rank + 1, at)
      end
      moved = moved + 1
    end
  end
end
return moved
