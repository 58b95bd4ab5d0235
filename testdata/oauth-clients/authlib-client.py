# Gets tokens with Authlib, calls the API with them, and revokes them.
#
# Usage: python3 authlib-client.py <url of the gateway> <name>, with the key in KEY

import json
import os
import sys

from authlib.integrations.requests_client import OAuth2Session

url, name = sys.argv[1:]
key = os.environ["KEY"]

for method in ("client_secret_basic", "client_secret_post"):
    session = OAuth2Session(name, key, token_endpoint=url + "/oauth2/token", token_endpoint_auth_method=method,
                            revocation_endpoint_auth_method=method)
    token = session.fetch_token()
    print(json.dumps({"token_type": token["token_type"], "expires_in": token["expires_in"], "scope": token.get("scope"), "expired": token.is_expired()}))
    answer = session.get(url + "/v1/vouchers/BLCKFRDY")
    print(json.dumps({"status": answer.status_code, "code": answer.json()["code"]}))
    assert session.revoke_token(url + "/oauth2/revoke", token["access_token"]).status_code == 200
