# What it shows: Vault Agent writes the secrets of examples/systemd to files, and
# replaces them when they change in Vault. The gateway reads a new secret at the next
# token request, a caller's key within a second; no reload, no restart.
#
# Needs:    a KV store of version 2 at secret/, with
#             vault kv put secret/voucherify app_id=… app_token=…
#             vault kv put secret/callers/web-shop key="$(caddy egress key)"
#           and an AppRole that may read both. Another auto_auth method will do.
#           The service as in examples/systemd/live-secrets.conf, with
#             Environment=SECRETS=/run/egress-secrets
#           since LoadCredential copies the files only when the service starts. The
#           directory is made before the agent starts, by tmpfiles.d:
#             d /run/egress-secrets 0750 root egress-secrets
# Run it:   vault agent -config=examples/secrets/vault-agent.hcl
# You see:  /run/egress-secrets with three files, -r--r----- root egress-secrets.
# Rotate:   vault kv put secret/voucherify …: the files are replaced within a minute.
#           The agent then has the gateway obtain a token with them; if they are wrong,
#           the token in use stays in use.
# Checked:  the templates are rendered by the library that Vault Agent uses. The agent
#           itself was not run where this was written.
# More:     docs/deploy/secrets.md
vault {
  address = "https://vault.example.com:8200"
}

auto_auth {
  method "approle" {
    config = {
      role_id_file_path                   = "/etc/vault-agent/role_id"
      secret_id_file_path                 = "/etc/vault-agent/secret_id"
      remove_secret_id_file_after_reading = false
    }
  }
}

template_config {
  # How soon a change in a KV store is noticed. Without it, 5 minutes.
  static_secret_render_interval = "1m"
}

# A file is written beside the old one and renamed. The identifier comes first: with a
# new pair, the moment in between is one where the old secret is refused, and the
# gateway tries again.
template {
  contents             = "{{ with secret \"secret/data/voucherify\" }}{{ .Data.data.app_id }}{{ end }}"
  destination          = "/run/egress-secrets/app_id"
  error_on_missing_key = true
  perms                = "0440"
  group                = "egress-secrets"
}

template {
  contents             = "{{ with secret \"secret/data/voucherify\" }}{{ .Data.data.app_token }}{{ end }}"
  destination          = "/run/egress-secrets/app_token"
  error_on_missing_key = true
  perms                = "0440"
  group                = "egress-secrets"

  exec {
    # It fails before the gateway runs, which does no harm.
    command = ["sh", "-c", "caddy egress refresh promo --address unix//run/caddy-egress/admin.sock || true"]
    timeout = "30s"
  }
}

template {
  contents             = "{{ with secret \"secret/data/callers/web-shop\" }}{{ .Data.data.key }}{{ end }}"
  destination          = "/run/egress-secrets/web-shop"
  error_on_missing_key = true
  perms                = "0440"
  group                = "egress-secrets"
}
