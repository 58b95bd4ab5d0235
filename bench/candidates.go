package main

import (
	"context"
	"fmt"
	"strings"
)

// variant is what a candidate serves on a port of its own.
type variant struct {
	http2 bool // spoken with the client, unencrypted
	https bool // spoken with the upstream
	allow bool // the route has a list of what is allowed
}

// candidate is a proxy that is measured.
type candidate struct {
	name string
	urls map[variant]string
	*process
}

// The candidates by name, in the order in which they run.
const (
	egress   = "egress"
	plain    = "plain reverse_proxy"
	defaults = "reverse_proxy, defaults"
	floor    = "nginx"
)

var candidateNames = []string{egress, plain, defaults, floor}

// upstream is the API: nginx, which wants an Authorization header.
type upstream struct {
	http, https string // URLs
	*process
}

// nginxMain is common to upstream and proxy: one process, so that its CPU time
// is read in one place; no limit on the requests of a connection.
const nginxMain = `daemon off;
master_process off;
pid %[1]s/%[2]s.pid;
error_log stderr error;
events { worker_connections 4096; }
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	open_file_cache max=16 inactive=1h;
	open_file_cache_valid 1h;
	keepalive_requests 1000000000;
	keepalive_timeout 1h;
	client_max_body_size 2m;
	client_body_buffer_size 2m;
	client_body_temp_path %[1]s/%[2]s-body;
	proxy_temp_path %[1]s/%[2]s-proxy;
	fastcgi_temp_path %[1]s/%[2]s-fastcgi;
	uwsgi_temp_path %[1]s/%[2]s-uwsgi;
	scgi_temp_path %[1]s/%[2]s-scgi;
`

// upstreamServer reads request bodies as an API does, which nginx does only
// where it hands the request on: /post asks another server of the same nginx.
const upstreamServer = `	upstream discard { server 127.0.0.1:%[4]d; keepalive 256; keepalive_requests 1000000000; }
	server {
		listen 127.0.0.1:%[2]d;
		listen 127.0.0.1:%[3]d ssl http2;
		ssl_certificate %[1]s/cert.pem;
		ssl_certificate_key %[1]s/key.pem;
		root %[1]s;
		location = /ready { return 200; }
		location ~ ^/(0|1k|1m)$ {
			if ($http_authorization = "") { return 401; }
		}
		location = /post {
			if ($http_authorization = "") { return 401; }
			proxy_pass http://discard;
			proxy_http_version 1.1;
			proxy_pass_request_body off;
			proxy_pass_request_headers off;
			proxy_set_header Connection "";
			proxy_set_header Content-Length "";
			proxy_method GET;
		}
		location / { return 404; }
	}
	server {
		listen 127.0.0.1:%[4]d;
		default_type application/json;
		location / { return 200 '{"id":"1a2b3c","object":"validation","valid":true}'; }
	}
}
`

const nginxProxy = `	upstream http { server %[2]s; keepalive 256; keepalive_requests 1000000000; }
	upstream https { server %[3]s; keepalive 256; keepalive_requests 1000000000; }
	proxy_http_version 1.1;
	proxy_max_temp_file_size 0;
	proxy_set_header Connection "";
	proxy_set_header Authorization "Bearer bench-static-token";
	proxy_ssl_verify on;
	proxy_ssl_name localhost;
	proxy_ssl_trusted_certificate %[1]s/cert.pem;
	server { listen 127.0.0.1:%[4]d; location / { proxy_pass http://http; } }
	server { listen 127.0.0.1:%[5]d; location / { proxy_pass https://https; } }
	server { listen 127.0.0.1:%[6]d http2; location / { proxy_pass http://http; } }
	server { listen 127.0.0.1:%[7]d http2; location / { proxy_pass https://https; } }
}
`

func (l *lab) startUpstream(ctx context.Context) (*upstream, error) {
	ports, err := freePorts(ctx, 3)
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf(nginxMain, l.dir, "upstream") +
		fmt.Sprintf(upstreamServer, l.dir, ports[0], ports[1], ports[2])
	p, err := l.startNginx(ctx, "upstream", config)
	if err != nil {
		return nil, err
	}
	u := &upstream{
		http:    fmt.Sprintf("http://127.0.0.1:%d", ports[0]),
		https:   fmt.Sprintf("https://127.0.0.1:%d", ports[1]),
		process: p,
	}
	return u, p.ready(ctx, u.http+"/ready")
}

func (l *lab) startNginx(ctx context.Context, name, config string) (*process, error) {
	file, err := l.write(name+".conf", config)
	if err != nil {
		return nil, err
	}
	return l.start(ctx, l.nginx, "-p", l.dir, "-e", "stderr", "-c", file)
}

// startCandidates starts all of them, and waits until each is served by u.
func (l *lab) startCandidates(ctx context.Context, u *upstream, tokenURL string) ([]*candidate, error) {
	var all []*candidate
	for _, name := range candidateNames {
		c, err := l.startCandidate(ctx, name, u, tokenURL)
		if err != nil {
			return nil, err
		}
		for v, url := range c.urls {
			if v.http2 { // the same process; nginx speaks nothing else there
				continue
			}
			if err := c.ready(ctx, url+"/1k"); err != nil {
				return nil, err
			}
		}
		all = append(all, c)
	}
	return all, nil
}

func (l *lab) startCandidate(ctx context.Context, name string, u *upstream, tokenURL string) (*candidate, error) {
	if name == floor {
		return l.startFloor(ctx, u)
	}
	ports, err := freePorts(ctx, 3)
	if err != nil {
		return nil, err
	}
	site := func(i int, https, allow bool) string {
		return fmt.Sprintf("http://:%d {\n\tbind 127.0.0.1\n\t%s\n}\n", ports[i], l.handler(name, u, tokenURL, https, allow))
	}
	config := caddyGlobal + "}\n" + site(0, false, false) + site(1, true, false) + site(2, false, true)
	file, err := l.write(strings.ReplaceAll(name, " ", "-")+".caddyfile", config)
	if err != nil {
		return nil, err
	}
	p, err := l.start(ctx, l.caddy, "run", "--adapter", "caddyfile", "--config", file)
	if err != nil {
		return nil, err
	}
	c := &candidate{name: name, urls: make(map[variant]string), process: p}
	for i, v := range []variant{{}, {https: true}, {allow: true}} {
		url := fmt.Sprintf("http://127.0.0.1:%d", ports[i])
		c.urls[v] = url
		v.http2 = true
		c.urls[v] = url
	}
	return c, nil
}

const caddyGlobal = `{
	admin off
	persist_config off
	auto_https off
	log {
		level ERROR
	}
	servers {
		protocols h1 h2 h2c
	}
`

// equalSettings are those of egress for its connections, as options of
// `transport http`.
const equalSettings = "keepalive_idle_conns_per_host 256\n\tcompression off\n"

// handler returns the directive by which a candidate hands requests on.
func (l *lab) handler(name string, u *upstream, tokenURL string, https, allow bool) string {
	url, client, trust := u.http, "bench", ""
	if https {
		url, client, trust = u.https, "bench-tls", "tls_trust_pool file "+l.file("cert.pem")+"\n"
	}
	if name == egress {
		options := ""
		if allow {
			options += "allow GET /0 /1k /1m\n\tallow POST /post\n"
		}
		if https {
			options += "transport http {\n\t" + trust + "}\n"
		}
		return fmt.Sprintf("egress oauth2 %s {\n\ttoken_url %s\n\tclient_id %s\n\tclient_secret {env.BENCH_SECRET}\n\t%s}", url, tokenURL, client, options)
	}
	if name == plain {
		trust += equalSettings
	}
	return fmt.Sprintf("reverse_proxy %s {\n\theader_up Authorization \"Bearer bench-static-token\"\n\ttransport http {\n\t%s}\n}", url, trust)
}

// startFloor starts nginx as a proxy: what a proxy in C needs on this machine.
func (l *lab) startFloor(ctx context.Context, u *upstream) (*candidate, error) {
	ports, err := freePorts(ctx, 4)
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf(nginxMain, l.dir, "proxy") +
		fmt.Sprintf(nginxProxy, l.dir, strings.TrimPrefix(u.http, "http://"), strings.TrimPrefix(u.https, "https://"),
			ports[0], ports[1], ports[2], ports[3])
	p, err := l.startNginx(ctx, "proxy", config)
	if err != nil {
		return nil, err
	}
	c := &candidate{name: floor, urls: make(map[variant]string), process: p}
	for i, v := range []variant{{}, {https: true}, {http2: true}, {http2: true, https: true}} {
		url := fmt.Sprintf("http://127.0.0.1:%d", ports[i])
		c.urls[v] = url
		v.allow = true // it has no such list
		c.urls[v] = url
	}
	return c, nil
}
