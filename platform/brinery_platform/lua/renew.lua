-- incarnation, lease in milliseconds -> 'renewed' | 'dead'. Once its tasks were given away, an id never lives again.
if redis.call('SISMEMBER', 'incarnations', ARGV[1]) == 0 then
  return 'dead'
end
redis.call('SET', 'incarnation:' .. ARGV[1], '1', 'PX', ARGV[2])
return 'renewed'
