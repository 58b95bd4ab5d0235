# Gets tokens with requests-oauthlib, and calls the API with them.
#
# Usage: python3 requests-oauthlib.py <url of the gateway> <name>, with the key in KEY

import json
import os
import sys

from oauthlib.oauth2 import BackendApplicationClient
from requests.auth import HTTPBasicAuth
from requests_oauthlib import OAuth2Session

url, name = sys.argv[1:]
key = os.environ["KEY"]
os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"  # http

for how in (
    {"client_secret": key},
    {"client_secret": key, "include_client_id": True},
    {"auth": HTTPBasicAuth(name, key)},
    {"auth": HTTPBasicAuth(name, key), "include_client_id": True},
):
    session = OAuth2Session(client=BackendApplicationClient(client_id=name))
    token = session.fetch_token(url + "/oauth2/token", **how)
    # which fails where the scope is not the one asked for
    print(json.dumps({"token_type": token["token_type"], "expires_in": token["expires_in"], "scope": token.get("scope")}))
    answer = session.get(url + "/v1/vouchers/BLCKFRDY")
    print(json.dumps({"status": answer.status_code, "code": answer.json()["code"]}))
