-- id, incarnation -> 'released' | 'stale'. The opposite of hold: the message goes back to the head of its queue.
local id, incarnation = ARGV[1], ARGV[2]
local status, holder, endpoint, rank =
  unpack(redis.call('HMGET', 'task:' .. id, 'status', 'holder', 'endpoint_id', 'rank'))
if status ~= 'queued' or holder ~= incarnation then
  return 'stale'
end
local sequence = redis.call('ZSCORE', waiting_key(endpoint, rank), id)
if not sequence then
  return 'stale'
end
redis.call('HDEL', 'task:' .. id, 'holder')
sequence = string.format('%d', tonumber(sequence))
redis.call('RPUSH', queue_key(endpoint, rank), message(id, endpoint, rank, sequence))
return 'released'
