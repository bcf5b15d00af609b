-- incarnation, lease in milliseconds -> 'registered'
redis.call('SADD', 'incarnations', ARGV[1])
redis.call('SET', 'incarnation:' .. ARGV[1], '1', 'PX', ARGV[2])
return 'registered'
