-- id, incarnation -> 'held' | reason. A forwarder has the message but no free worker: the task stays queued, and as
-- long as the forwarder lives its message is not lost.
local id, incarnation = ARGV[1], ARGV[2]
local status, holder, not_before = unpack(redis.call('HMGET', 'task:' .. id, 'status', 'holder', 'not_before'))
if not status then
  return 'gone'
end
if FINAL[status] then
  return 'final'
end
if status == 'queued' then
  if not_before then
    return 'delayed'
  end
  if holder and holder ~= incarnation and alive(holder) then
    return 'duplicate'
  end
  redis.call('HSET', 'task:' .. id, 'holder', incarnation)
end
return 'held'
