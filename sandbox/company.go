package sandbox

// This file holds what a client sees of an API: canned answers, and objects
// that it may create, change and delete.

import (
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

//go:embed samples
var samples embed.FS

// company is that of a client, or at Voucherify its project, as samples/*.json
// have it.
type company struct {
	Audience   string            // that a token needs, if any
	Scopes     []string          // that the client may ask for
	Headers    map[string]string // of every answer of the API
	Answers    map[string]canned // about tokens and errors
	Operations operations
	Objects    map[string][]object // by collection

	mu sync.Mutex // guards Objects
}

// newCompany reads the samples of api, with the names that clientID has there.
func newCompany(api, clientID string) (*company, error) {
	text, _ := samples.ReadFile("samples/" + api + ".json") // a missing file is not JSON, either
	co := new(company)
	if err := json.Unmarshal(fill(text, namesOf(clientID)), co); err != nil {
		return nil, fmt.Errorf("reading the samples of %s: %w", api, err)
	}
	return co, nil
}

// namesOf returns the names that go into the samples. Each client has its own,
// so that a mix-up shows.
func namesOf(clientID string) values {
	derived := func(what string, n int) string {
		sum := sha256.Sum256([]byte(what + " of " + clientID))
		return lettersAndDigits(sum[:n])
	}
	names := values{
		"client_id": clientID, "other_client_id": derived("client", 21),
		"company_id": derived("company", 20), "company_name": "Adventures of " + clientID,
		"user_id": derived("user", 20), "email": strings.ToLower(derived("email", 10)) + "@understory.example",
		"random": "{random}", // stays
	}
	if clientID == defaultClient { // as the README shows it
		names["company_id"], names["company_name"] = "9Tq2nVb4cX7mKd1Lw0Zs", "Sandbox Adventures"
		names["user_id"], names["email"] = "5Rg8hYf3jP6aTe2Uo9Ni", "sandbox@understory.example"
	}
	return names
}

// canned is an answer in which only placeholders vary.
type canned struct {
	Status int // 200 if there is none
	Body   json.RawMessage
}

func (c canned) with(v values) answer {
	return answer{status: cmp.Or(c.Status, http.StatusOK), body: fill(c.Body, v)}
}

// values go into canned JSON: for "{name}" as JSON, for {name} within a string
// as text.
type values map[string]any

// fill puts values into canned JSON, and letters and digits for {random}.
func fill(canned []byte, v values) json.RawMessage {
	var pairs []string
	for name, value := range v {
		b, _ := json.Marshal(value) // values of these types can be encoded
		text := strings.TrimSuffix(strings.TrimPrefix(string(b), `"`), `"`)
		pairs = append(pairs, `"{`+name+`}"`, string(b), "{"+name+"}", text)
	}
	pairs = append(pairs, "{random}", alphanumerics(20))
	return json.RawMessage(strings.NewReplacer(pairs...).Replace(string(canned)))
}

// object is one of a collection. It is never changed: another takes its place.
type object map[string]any

// is reports whether o may be asked for by id.
func (o object) is(id string) bool {
	own := o["id"]
	if own == nil {
		own = o["event_id"] // all that an availability has
	}
	return own == id || o["code"] == id || o["source_id"] == id || o["name"] == id
}

// all returns a copy of a collection.
func (co *company) all(collection string) []object {
	co.mu.Lock()
	defer co.mu.Unlock()
	return append([]object{}, co.Objects[collection]...) // [] rather than null
}

// index returns where an object is, or -1. The caller holds the lock.
func (co *company) index(collection, id string) int {
	return slices.IndexFunc(co.Objects[collection], func(o object) bool { return o.is(id) })
}

// answer does o, which is not a list.
func (co *company) answer(c *call, o *operation) answer {
	co.mu.Lock()
	defer co.mu.Unlock()
	objects, i := co.Objects[o.In], co.index(o.In, c.id)
	sent := c.object()
	switch {
	case (o.Does == "create" || o.Does == "update" && o.Set == nil) && sent == nil:
		return refuse(http.StatusBadRequest, "The body must be a JSON object")
	case o.Does == "create":
		return co.create(c, o, sent)
	case o.Does == "redeem":
		return co.redeem(c, o)
	case c.id != "" && i < 0:
		return notFound(o.In, c.id)
	case o.Does == "get":
		return succeed(objects[i])
	case o.Does == "delete":
		co.Objects[o.In] = slices.Delete(objects, i, i+1)
		return answer{status: http.StatusNoContent}
	case o.Does == "update":
		objects[i] = merged(objects[i], sent, o.settings(), object{"id": objects[i]["id"], "updated_at": now()})
		return succeed(objects[i])
	}
	return o.with(values{"id": c.id})
}

// create adds an object of what was sent, and what o sets.
func (co *company) create(c *call, o *operation, sent object) answer {
	id := o.Prefix + alphanumerics(20)
	created := merged(o.settings(), sent, object{"id": id, "created_at": now(), "updated_at": now()})
	if c.id != "" {
		created["code"] = c.id
	}
	if code, _ := created["code"].(string); code != "" && co.index(o.In, code) >= 0 {
		return refuse(http.StatusConflict, "There is one already: "+code)
	}
	co.Objects[o.In] = append(co.Objects[o.In], created)
	if o.Body == nil {
		return answer{status: cmp.Or(o.Status, http.StatusOK), body: created}
	}
	return o.with(values{"id": id})
}

// merged returns the fields of objects, where the last to have one counts.
func merged(objects ...object) object {
	all := make(object)
	for _, o := range objects {
		maps.Copy(all, o)
	}
	return all
}

// redeem answers with a canned body about every redeemable.
func (co *company) redeem(c *call, o *operation) answer {
	var sent struct{ Redeemables []struct{ ID string } }
	if err := json.Unmarshal(c.body, &sent); err != nil || len(sent.Redeemables) == 0 {
		return refuse(http.StatusBadRequest, "The body must be a JSON object with redeemables")
	}
	body, known := o.Body, o.Known
	for _, r := range sent.Redeemables {
		switch exists := co.index("vouchers", r.ID) >= 0; {
		case !exists && o.Otherwise == nil:
			return notFound("vouchers", r.ID)
		case !exists:
			body, known = o.Otherwise, o.Skipped
		}
	}
	var each []json.RawMessage
	for _, r := range sent.Redeemables {
		element := known
		if co.index("vouchers", r.ID) < 0 {
			element = o.Unknown
		}
		each = append(each, fill(element, values{"id": r.ID}))
	}
	return succeed(fill(body, values{"each": each}))
}

func now() string { return time.Now().UTC().Format(time.RFC3339) }
