package sandbox

// This file is the remote control of a Server: faults on purpose, and what is
// below /sandbox/.

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode"
)

// Faults are what a Server gets wrong on purpose. The zero value is none.
type Faults struct {
	Token Fault // of token endpoints, not of introspection or revocation
	API   Fault // of the API
}

// Fault delays answers, replaces them, or both. Without a Status it just delays.
type Fault struct {
	Status     int           // what every request is answered with
	Latency    time.Duration // passes before the answer, or until the client leaves
	RetryAfter string        // the header of that name, beside Status
	Body       string        // beside Status; default: what the API itself would say of an error
}

// SetFaults replaces all faults. An error names the field that it is about,
// and leaves the faults as they were.
func (s *Server) SetFaults(f Faults) error {
	if err := errors.Join(f.Token.validate("token"), f.API.validate("api")); err != nil {
		return err
	}
	s.faults.Store(&f)
	return nil
}

func (f Fault) validate(name string) error {
	if f.Status != 0 && (f.Status < 200 || f.Status > 599) {
		return fmt.Errorf("%s.status: %d is not between 200 and 599", name, f.Status)
	}
	if f.Latency < 0 {
		return fmt.Errorf("%s.latency: %v is negative", name, f.Latency)
	}
	if strings.ContainsFunc(f.RetryAfter, unicode.IsControl) {
		return fmt.Errorf("%s.retry_after: %q is not a header value", name, f.RetryAfter)
	}
	return nil
}

// strike delays r and returns the answer that f has for it, if any.
// inOwnWords answers where f has a status and no body.
func (f Fault) strike(r *http.Request, inOwnWords func(status int) answer) (answer, bool) {
	if f.Latency > 0 {
		timer := time.NewTimer(f.Latency)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return answer{status: 499}, true // nobody reads it, but logs should not show 200
		}
	}
	if f.Status == 0 {
		return answer{}, false
	}
	a := answer{status: f.Status, body: f.Body}
	switch {
	case f.Body == "" && f.Status >= 400:
		a = inOwnWords(f.Status)
	case json.Valid([]byte(f.Body)):
		a = a.with("Content-Type", jsonType)
	}
	if f.RetryAfter != "" {
		a = a.with("Retry-After", f.RetryAfter)
	}
	return a, true
}

// control answers what is below /sandbox/. It asks for no credential:
// everything in a sandbox is made up.
func (s *Server) control(r *http.Request) answer {
	method := map[string]string{
		"/sandbox/stats": http.MethodGet, "/sandbox/faults": http.MethodPut,
		"/sandbox/tokens/revoke": http.MethodPost, "/sandbox/tokens/expire": http.MethodPost,
	}[r.URL.Path]
	switch {
	case method == "":
		return controlError(http.StatusNotFound, "there are: GET /sandbox/stats, PUT /sandbox/faults, POST /sandbox/tokens/revoke, POST /sandbox/tokens/expire")
	case r.Method != method:
		return controlError(http.StatusMethodNotAllowed, "use "+method).with("Allow", method)
	case r.URL.Path == "/sandbox/stats":
		return succeed(s.Stats())
	case r.URL.Path == "/sandbox/faults":
		f, err := decodeFaults(r.Body)
		if err == nil {
			err = s.SetFaults(f)
		}
		if err != nil {
			return controlError(http.StatusBadRequest, err.Error())
		}
	default:
		s.RevokeAll() // a client cannot see the difference
	}
	return answer{status: http.StatusNoContent}
}

func controlError(status int, message string) answer {
	return answer{status: status, body: map[string]string{"error": message}}
}

// decodeFaults reads what PUT /sandbox/faults takes. SetFaults checks the rest.
func decodeFaults(body io.Reader) (f Faults, err error) {
	type fault struct {
		Status     int    `json:"status"`
		Latency    string `json:"latency"`
		RetryAfter string `json:"retry_after"`
		Body       string `json:"body"`
	}
	var sent struct {
		Token fault `json:"token"`
		API   fault `json:"api"`
	}
	dec := json.NewDecoder(body)
	dec.DisallowUnknownFields()
	err = dec.Decode(&sent)
	if err == nil && dec.More() {
		err = errors.New("it goes on after that")
	}
	if err != nil {
		return f, fmt.Errorf("the body must be a JSON object with token and api, each with status, latency, retry_after, body: %w", err)
	}
	read := func(name string, sent fault) Fault {
		latency, invalid := time.ParseDuration(cmp.Or(sent.Latency, "0"))
		if invalid != nil {
			err = fmt.Errorf("%s.latency: %w", name, invalid)
		}
		return Fault{sent.Status, latency, sent.RetryAfter, sent.Body}
	}
	f.Token, f.API = read("token", sent.Token), read("api", sent.API)
	return f, err
}
