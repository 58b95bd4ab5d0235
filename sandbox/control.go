package sandbox

import (
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
	// Status is what every request is answered with. Default: the answer
	// that there would have been.
	Status int

	// Latency passes before the answer, or until the client leaves.
	Latency time.Duration

	// RetryAfter is the header of that name, beside Status.
	RetryAfter string

	// Body goes with Status. Default: what the API itself would say for an
	// error, else nothing.
	Body string
}

// SetFaults replaces all faults. An error names the field that it is about,
// and leaves the faults as they were.
func (s *Server) SetFaults(f Faults) error {
	if err := f.Token.validate("token"); err != nil {
		return err
	}
	if err := f.API.validate("api"); err != nil {
		return err
	}
	s.state.faults.Store(&f)
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
		return fmt.Errorf("%s.retry_after: %q is no header value", name, f.RetryAfter)
	}
	return nil
}

// strike delays r and answers it if f says so; true means it is done with.
// inOwnWords answers where f has a status and no body.
func (f Fault) strike(w http.ResponseWriter, r *http.Request, inOwnWords func(http.ResponseWriter, int)) bool {
	if f.Latency > 0 {
		timer := time.NewTimer(f.Latency)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			w.WriteHeader(499) // nobody reads it, but logs should not show 200
			return true
		}
	}
	if f.Status == 0 {
		return false
	}
	if f.RetryAfter != "" {
		w.Header().Set("Retry-After", f.RetryAfter)
	}
	if f.Body == "" && f.Status >= 400 {
		inOwnWords(w, f.Status)
		return true
	}
	body := []byte(f.Body)
	contentType := http.DetectContentType(body)
	if json.Valid(body) {
		contentType = jsonType
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(f.Status)
	_, _ = w.Write(body)
	return true
}

// serveControl answers what is below /sandbox/. There is no authentication:
// everything in a sandbox is made up.
func (s *Server) serveControl(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/sandbox/stats":
		if only(w, r, http.MethodGet) {
			writeJSON(w, http.StatusOK, jsonType, s.Stats())
		}
	case "/sandbox/tokens/revoke":
		if only(w, r, http.MethodPost) {
			s.RevokeAll()
			w.WriteHeader(http.StatusNoContent)
		}
	case "/sandbox/faults":
		if only(w, r, http.MethodPut) {
			s.serveFaults(w, r)
		}
	default:
		controlError(w, http.StatusNotFound, "there are: GET /sandbox/stats, POST /sandbox/tokens/revoke, PUT /sandbox/faults")
	}
}

func (s *Server) serveFaults(w http.ResponseWriter, r *http.Request) {
	f, err := decodeFaults(r.Body)
	if err == nil {
		err = s.SetFaults(f)
	}
	if err != nil {
		controlError(w, http.StatusBadRequest, err.Error())
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// faultJSON is a Fault as it is sent.
type faultJSON struct {
	Status     *int    `json:"status"`
	Latency    *string `json:"latency"`
	RetryAfter string  `json:"retry_after"`
	Body       string  `json:"body"`
}

func (j faultJSON) fault(name string) (Fault, error) {
	f := Fault{RetryAfter: j.RetryAfter, Body: j.Body}
	if j.Status != nil {
		f.Status = *j.Status
		if f.Status == 0 { // to SetFaults that would mean none
			return f, fmt.Errorf("%s.status: 0 is not between 200 and 599", name)
		}
	}
	if j.Latency == nil {
		return f, nil
	}
	var err error
	if f.Latency, err = time.ParseDuration(*j.Latency); err != nil {
		return f, fmt.Errorf("%s.latency: %q is not a duration such as 300ms", name, *j.Latency)
	}
	return f, nil
}

func decodeFaults(body io.Reader) (f Faults, err error) {
	var sent struct {
		Token faultJSON `json:"token"`
		API   faultJSON `json:"api"`
	}
	dec := json.NewDecoder(body)
	dec.DisallowUnknownFields()
	if err = dec.Decode(&sent); err != nil {
		return f, describe(err)
	}
	if _, err = dec.Token(); !errors.Is(err, io.EOF) {
		return f, errors.New("the body goes on after its JSON object")
	}
	if f.Token, err = sent.Token.fault("token"); err != nil {
		return f, err
	}
	f.API, err = sent.API.fault("api")
	return f, err
}

// describe says what is wrong with JSON in words that name its field.
func describe(err error) error {
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) && wrongType.Field != "" {
		return fmt.Errorf("%s: a %s is not what goes here", wrongType.Field, wrongType.Value)
	}
	if unknown, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return fmt.Errorf("unknown field %s; there are: token and api, each with status, latency, retry_after, body", unknown)
	}
	return errors.New("the body is not a JSON object")
}

// only answers a request of another method.
func only(w http.ResponseWriter, r *http.Request, method string) bool {
	if r.Method == method {
		return true
	}
	w.Header().Set("Allow", method)
	controlError(w, http.StatusMethodNotAllowed, "use "+method)
	return false
}

func controlError(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, jsonType, struct {
		Error string `json:"error"`
	}{message})
}
