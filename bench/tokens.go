package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// span is the time of one token request.
type span struct {
	client     string
	start, end time.Time
}

// tokenEndpoint issues tokens, slowly, and counts.
type tokenEndpoint struct {
	url      string
	latency  time.Duration
	lifetime time.Duration
	server   *http.Server

	mu          sync.Mutex
	inFlight    int
	maxInFlight int
	spans       []span
	clients     map[string]bool // those that have a token
	want        int
	complete    chan struct{} // closed once `want` clients have a token
}

// startTokens starts a token endpoint in this process.
func startTokens(ctx context.Context, latency, lifetime time.Duration, want int) (*tokenEndpoint, error) {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	e := newTokenEndpoint(latency, lifetime, want)
	e.url = "http://" + listener.Addr().String() + "/token"
	e.server = &http.Server{Handler: e, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = e.server.Serve(listener) }() // ends with close
	return e, nil
}

func newTokenEndpoint(latency, lifetime time.Duration, want int) *tokenEndpoint {
	return &tokenEndpoint{
		latency:  latency,
		lifetime: lifetime,
		clients:  make(map[string]bool),
		want:     want,
		complete: make(chan struct{}),
	}
}

func (e *tokenEndpoint) close() { _ = e.server.Close() }

func (e *tokenEndpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	client, _, ok := r.BasicAuth()
	if !ok {
		http.Error(w, `{"error":"invalid_client"}`, http.StatusUnauthorized)
		return
	}
	start := time.Now()
	e.begin()
	select {
	case <-time.After(e.latency):
	case <-r.Context().Done():
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"access_token":"bench-%s-%d","token_type":"Bearer","expires_in":%d}`,
		client, start.UnixNano(), int(e.lifetime.Seconds()))
	e.end(client, start)
}

func (e *tokenEndpoint) begin() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.inFlight++
	e.maxInFlight = max(e.maxInFlight, e.inFlight)
}

func (e *tokenEndpoint) end(client string, start time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.inFlight--
	e.spans = append(e.spans, span{client, start, time.Now()})
	if e.clients[client] {
		return
	}
	e.clients[client] = true
	if len(e.clients) == e.want {
		close(e.complete)
	}
}

// requests returns the token requests of client so far.
func (e *tokenEndpoint) requests(client string) []span {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(e.spans), func(s span) bool { return s.client != client })
}

// most returns the largest number of token requests at a time.
func (e *tokenEndpoint) most() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.maxInFlight
}
