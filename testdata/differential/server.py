"""Python as e2e/differential_test.go runs it: servers that read the target of a
request in the ways that are common, and say which operation they take it for.
It prints the port of each, as JSON in one line.
"""
import http.server
import json
import ntpath
import posixpath
import re
import sys
import threading
import unicodedata
from urllib.parse import unquote, unquote_plus, urlparse, urlsplit


def files(target):  # as SimpleHTTPRequestHandler.translate_path
    path = unquote(target.split("?", 1)[0].split("#", 1)[0])
    return posixpath.normpath(path) + ("/" if path.rstrip().endswith("/") else "")


READINGS = {
    "files": files,
    "urlsplit then unquote": lambda target: unquote(urlsplit(target).path),
    "unquote then urlsplit": lambda target: urlsplit(unquote(target)).path,
    "unquote then urlparse": lambda target: urlparse(unquote(target)).path,
    "unquote twice": lambda target: posixpath.normpath(unquote(unquote(urlsplit(target).path))),
    "unquote plus": lambda target: "/".join(s.strip() for s in unquote_plus(urlsplit(target).path).split("/")),
    "strip segments": lambda target: posixpath.normpath("/".join(s.strip() for s in unquote_plus(urlsplit(target).path).split("/"))),
    "compose": lambda target: posixpath.normpath(unicodedata.normalize("NFKC", unquote(urlsplit(target).path))),
    "as Windows": lambda target: ntpath.normpath(unquote(urlsplit(target).path)).replace("\\", "/"),
    "latin-1": lambda target: posixpath.normpath(unquote(target, "latin-1").split("?", 1)[0]),
}

OPERATIONS = [
    ("vouchers", re.compile(r"/v1/vouchers/?")),
    ("voucher", re.compile(r"/v1/vouchers/[^/]+/?")),
    ("validate", re.compile(r"/v1/vouchers/[^/]+/validate/?")),
    ("redemption", re.compile(r"/v1/vouchers/[^/]+/redemption/?")),
    ("below-voucher", re.compile(r"/v1/vouchers/.*", re.S)),
    ("campaigns", re.compile(r"/v1/campaigns")),
    ("campaign", re.compile(r"/v1/campaigns/.*", re.S)),
    ("revoke", re.compile(r"/v1/oauth/revoke(/.*)?", re.S)),
]


def handler(read):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                path = read(self.path)
            except ValueError:
                path = None
            operation = path and next((name for name, pattern in OPERATIONS if pattern.fullmatch(path)), None)
            body = (path or "").encode("utf-8", "replace")
            self.send_response(200 if operation else 404)
            if operation:
                self.send_header("X-Operation", operation)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, *args):
            pass

    return Handler


ports = {}
for name, read in READINGS.items():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(read))
    server.daemon_threads = True
    ports[name] = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
print(json.dumps(ports), flush=True)
sys.stdin.read()
