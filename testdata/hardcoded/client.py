# An application that has the API's host built in: gets a voucher by the module that
# is named, and prints its code and the status. It sends what it takes for an
# application's ID and secret.
#
# Usage: KEY=<secret> python3 client.py requests|urllib

import json
import os
import sys

url = "https://api.voucherify.io/v1/vouchers/BLCKFRDY"
headers = {"X-App-Id": "web-shop", "X-App-Token": os.environ["KEY"]}

if sys.argv[1] == "requests":
    import requests

    answer = requests.get(url, headers=headers, timeout=15)
    print(answer.status_code, answer.json()["code"])
else:
    import urllib.request

    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=15) as answer:
        print(answer.status, json.load(answer)["code"])
