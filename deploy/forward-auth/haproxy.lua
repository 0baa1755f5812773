-- The action "sluice": asks /api/v1/auth/verify whether a request may pass. Where it may, the request gets the identity headers; where
-- not, the client gets Sluice's own answer.

local checks = "http://127.0.0.1:8001/api/v1/auth/verify" -- the frontend of that name in haproxy.cfg
local timeout = 4000 -- milliseconds; more than its backend takes for two nodes

-- What a check is decided by. Nothing else of the client's goes along.
local credentials = { "authorization", "x-api-key" }

local identity = { "x-auth-method", "x-auth-user", "x-auth-organization", "x-auth-key", "x-auth-scopes" }

-- What the client gets of an answer, and the variables in which haproxy.cfg finds it where the request passes.
local limits = {
  ["x-request-id"] = "txn.sluice_id",
  ["x-ratelimit-limit"] = "txn.sluice_limit",
  ["x-ratelimit-remaining"] = "txn.sluice_remaining",
  ["x-ratelimit-reset"] = "txn.sluice_reset",
  ["x-ratelimit-window"] = "txn.sluice_window",
  ["ratelimit-policy"] = "txn.sluice_policies",
  ["ratelimit"] = "txn.sluice_limits",
}
local denial = { "content-type", "cache-control", "www-authenticate", "retry-after" }
local denials = { [400] = true, [401] = true, [403] = true, [429] = true, [503] = true }

local function all(headers, name)
  local list, lines = {}, headers[name]
  if lines then
    for i = 0, #lines do
      list[#list + 1] = lines[i]
    end
  end
  return list
end

core.register_action("sluice", { "http-req" }, function(txn)
  local client = txn.http:req_get_headers()
  local headers = {
    ["x-forwarded-method"] = { txn.sf:method() },
    ["x-forwarded-uri"] = { txn.sf:pathq() },
    ["x-forwarded-host"] = all(client, "host"),
    ["x-forwarded-proto"] = all(client, "x-forwarded-proto"),
    ["x-request-id"] = all(client, "x-request-id"),
  }
  for _, name in ipairs(credentials) do
    if client[name] then
      headers[name] = all(client, name)
    end
  end
  -- The list that came along, and who sent it: "option forwardfor" is added behind this action.
  local hops = all(client, "x-forwarded-for")
  hops[#hops + 1] = txn.sf:src()
  headers["x-forwarded-for"] = { table.concat(hops, ", ") }

  local answer = core.httpclient():get({ url = checks, headers = headers, timeout = timeout })
  local status = answer and answer.status or 0
  if status == 200 then
    for _, name in ipairs(identity) do
      txn.http:req_set_header(name, all(answer.headers, name)[1] or "")
    end
    for name, variable in pairs(limits) do
      local value = all(answer.headers, name)[1]
      if value then
        txn:set_var(variable, value)
      end
    end
    return
  end

  local reply = txn:reply()
  if denials[status] then
    reply:set_status(status)
    for _, name in ipairs(denial) do
      for _, value in ipairs(all(answer.headers, name)) do
        reply:add_header(name, value)
      end
    end
    for name in pairs(limits) do
      for _, value in ipairs(all(answer.headers, name)) do
        reply:add_header(name, value)
      end
    end
    reply:set_body(answer.body or "")
  else
    -- Nobody could be asked. A request passes only where Sluice says so.
    reply:set_status(503)
    reply:add_header("retry-after", "1")
  end
  txn:done(reply)
end)
