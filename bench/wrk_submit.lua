-- Submits the same arguments again and again, counts what is not accepted, and ends with one line of JSON.
-- BENCH_BODY and BENCH_AUTHORIZATION come as environment variables, so that the key is on no command line.

local threads = {}

wrk.method = "POST"
wrk.body = os.getenv("BENCH_BODY")
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = os.getenv("BENCH_AUTHORIZATION")

refused = 0

function setup(thread)
  table.insert(threads, thread)
end

function response(status, _, _)
  if status ~= 202 then
    refused = refused + 1
  end
end

function done(summary, _, _)
  local all_refused = 0
  for _, thread in ipairs(threads) do
    all_refused = all_refused + thread:get("refused")
  end
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "duration_us": %d, "refused": %d, "socket_errors": %d}\n', summary.requests,
    summary.duration, all_refused, errors.connect + errors.read + errors.write + errors.timeout
  ))
end
