package sandbox

import (
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// understory imitates the Understory API.
type understory struct {
	Options
	tokens  *tokens
	company *company
	ops     []operation
}

func newUnderstory(o Options, st *state) *understory {
	u := &understory{Options: o, tokens: &st.tokens, company: st.company}
	u.ops = u.operations()
	return u
}

// resource is a collection of the API.
type resource struct {
	name      string
	scope     string // what comes before .read and .write
	localized bool   // Accept-Language is required
	creatable bool
	editable  bool
}

var understoryResources = []resource{
	{name: "bookings", scope: "booking", creatable: true},
	{name: "events", scope: "event"},
	{name: "event-availabilities", scope: "event"},
	{name: "experiences", scope: "experience", localized: true},
	{name: "orders", scope: "order"},
	{name: "marketing-consents", scope: "marketing"},
	{name: "gift-cards", scope: "gift-card"},
	{name: "webhook-subscriptions", scope: "webhook", creatable: true, editable: true},
}

// understoryScopes are those that the sandbox's client may ask for.
var understoryScopes = func() []string {
	scopes := []string{"openid", "offline"}
	for _, res := range understoryResources {
		scopes = append(scopes, res.scope+".read", res.scope+".write")
	}
	return scopes
}()

func (u *understory) operations() []operation {
	ops := []operation{{http.MethodGet, "/v1/me", u.serveMe}}
	for _, res := range understoryResources {
		all, one := "/v1/"+res.name, "/v1/"+res.name+"/*"
		ops = append(ops,
			u.on(res, http.MethodGet, all, u.serveList),
			u.on(res, http.MethodGet, one, u.serveItem))
		if res.creatable {
			ops = append(ops, u.on(res, http.MethodPost, all, u.serveCreate))
		}
		if res.editable {
			ops = append(ops,
				u.on(res, http.MethodPut, one, u.serveReplace),
				u.on(res, http.MethodDelete, one, u.serveDelete))
		}
	}
	return ops
}

// on returns an operation on res, which checks what res asks of every call.
func (u *understory) on(res resource, method, path string, serve func(http.ResponseWriter, *call, resource)) operation {
	op := operation{method: method, path: path}
	scope := res.scope + op.access()
	op.serve = func(w http.ResponseWriter, c *call) {
		if !c.token.has(scope) {
			understoryError(w, http.StatusForbidden, "The access token lacks the scope "+scope)
			return
		}
		if res.localized && c.Header.Get("Accept-Language") == "" {
			understoryError(w, http.StatusBadRequest, "The header Accept-Language is required")
			return
		}
		serve(w, c, res)
	}
	return op
}

func (u *understory) serveAPI(w http.ResponseWriter, r *http.Request, body []byte) {
	t, ok := u.tokens.bearer(r)
	if !ok || !slices.Contains(t.audience, understoryAudience) {
		u.apiError(w, http.StatusUnauthorized)
		return
	}
	if len(body) > maxBody {
		u.apiError(w, http.StatusRequestEntityTooLarge)
		return
	}
	op, id, allowed := find(u.ops, r)
	if op.serve != nil {
		op.serve(w, &call{Request: r, body: body, id: id, token: t})
		return
	}
	if allowed == nil {
		u.apiError(w, http.StatusNotFound)
		return
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	u.apiError(w, http.StatusMethodNotAllowed)
}

func (u *understory) serveMe(w http.ResponseWriter, _ *call) {
	writeJSON(w, http.StatusOK, jsonType, u.company.Me)
}

func (u *understory) serveList(w http.ResponseWriter, c *call, res resource) {
	page, err := u.company.page(res.name, c.URL.Query().Get("cursor"), c.URL.Query().Get("limit"))
	if err != nil {
		understoryError(w, http.StatusBadRequest, err.Error())
		return
	}
	writeJSON(w, http.StatusOK, jsonType, page)
}

func (u *understory) serveItem(w http.ResponseWriter, c *call, res resource) {
	it, ok := u.company.find(res.name, c.id)
	if !ok {
		u.apiError(w, http.StatusNotFound)
		return
	}
	writeJSON(w, http.StatusOK, jsonType, it)
}

func (u *understory) serveCreate(w http.ResponseWriter, c *call, res resource) {
	it, err := newItem(alphanumerics(20), c.body)
	if err != nil {
		understoryError(w, http.StatusBadRequest, err.Error())
		return
	}
	u.company.add(res.name, it)
	writeJSON(w, http.StatusCreated, jsonType, it)
}

func (u *understory) serveReplace(w http.ResponseWriter, c *call, res resource) {
	it, err := newItem(c.id, c.body)
	if err != nil {
		understoryError(w, http.StatusBadRequest, err.Error())
		return
	}
	if !u.company.replace(res.name, it) {
		u.apiError(w, http.StatusNotFound)
		return
	}
	writeJSON(w, http.StatusOK, jsonType, it)
}

func (u *understory) serveDelete(w http.ResponseWriter, c *call, res resource) {
	if !u.company.remove(res.name, c.id) {
		u.apiError(w, http.StatusNotFound)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// header sets nothing: Understory documents no header of its answers.
func (u *understory) header(http.Header) {}

func (u *understory) apiError(w http.ResponseWriter, status int) {
	understoryError(w, status, http.StatusText(status))
}

// understoryError answers in the shape of the API. Of its codes only
// UNAUTHORIZED and INTERNAL_SERVER_ERROR are documented; the rest follow suit.
func understoryError(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, jsonType, struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}{statusWord(status, strings.ToUpper), message})
}

// statusWord makes a word of a status, in the case that casing gives it.
func statusWord(status int, casing func(string) string) string {
	return casing(strings.NewReplacer(" ", "_", "-", "_").Replace(http.StatusText(status)))
}

//go:embed samples/understory.json
var understorySamples []byte

// company is what a client of the Understory API sees.
type company struct {
	Me struct {
		CompanyID   string `json:"company_id"`
		CompanyName string `json:"company_name"`
		UserID      string `json:"user_id"`
		Email       string `json:"email"`
	} `json:"me"`

	mu        sync.Mutex
	Resources map[string][]item `json:"resources"`
}

func newCompany() (*company, error) {
	c := new(company)
	if err := json.Unmarshal(understorySamples, c); err != nil {
		return nil, fmt.Errorf("reading the samples of Understory: %w", err)
	}
	return c, nil
}

// item is a JSON object with an id.
type item struct {
	id   string
	json json.RawMessage
}

func (i item) MarshalJSON() ([]byte, error) { return i.json, nil }

func (i *item) UnmarshalJSON(b []byte) error {
	var identified struct {
		ID string `json:"id"`
	}
	err := json.Unmarshal(b, &identified)
	i.id, i.json = identified.ID, slices.Clone(b)
	return err
}

// newItem makes an item of what a client sent.
func newItem(id string, body []byte) (item, error) {
	var fields map[string]any
	if err := json.Unmarshal(body, &fields); err != nil || fields == nil {
		return item{}, fmt.Errorf("the body must be a JSON object")
	}
	fields["id"] = id
	fields["created_at"] = time.Now().UTC().Format(time.RFC3339)
	b, err := json.Marshal(fields)
	return item{id, b}, err
}

// page is a part of a collection. Next is empty on the last one.
type page struct {
	Next  string `json:"next,omitempty"`
	Items []item `json:"items"`
}

// page returns up to limit items from cursor on, which counts the items before
// it and is encoded so that nobody is tempted to compute with it.
func (c *company) page(name, cursor, limit string) (page, error) {
	size := 50
	if limit != "" {
		var err error
		if size, err = strconv.Atoi(limit); err != nil || size < 1 || size > 100 {
			return page{}, fmt.Errorf("limit must be a number from 1 to 100")
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	items := c.Resources[name]
	start, err := decodeCursor(cursor)
	if err != nil {
		return page{}, err
	}
	start = min(start, len(items)) // items may have been deleted since
	end := min(start+size, len(items))
	p := page{Items: append([]item{}, items[start:end]...)} // [] rather than null
	if end < len(items) {
		p.Next = encodeCursor(end)
	}
	return p, nil
}

const cursorPrefix = "after:"

func encodeCursor(n int) string {
	return base64.RawURLEncoding.EncodeToString([]byte(cursorPrefix + strconv.Itoa(n)))
}

func decodeCursor(cursor string) (int, error) {
	if cursor == "" {
		return 0, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(cursor)
	digits, ok := strings.CutPrefix(string(b), cursorPrefix)
	n, numErr := strconv.Atoi(digits)
	if err != nil || !ok || numErr != nil || n < 0 {
		return 0, fmt.Errorf("cursor must be the next of an earlier page")
	}
	return n, nil
}

func (c *company) index(name, id string) int {
	return slices.IndexFunc(c.Resources[name], func(i item) bool { return i.id == id })
}

func (c *company) find(name, id string) (item, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.index(name, id)
	if i < 0 {
		return item{}, false
	}
	return c.Resources[name][i], true
}

func (c *company) add(name string, it item) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Resources[name] = append(c.Resources[name], it)
}

func (c *company) replace(name string, it item) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.index(name, it.id)
	if i < 0 {
		return false
	}
	c.Resources[name][i] = it
	return true
}

func (c *company) remove(name, id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.index(name, id)
	if i < 0 {
		return false
	}
	c.Resources[name] = slices.Delete(c.Resources[name], i, i+1)
	return true
}
