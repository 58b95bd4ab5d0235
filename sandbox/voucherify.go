package sandbox

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// voucherify imitates the Voucherify API.
type voucherify struct {
	Options
	tokens  *tokens
	project *project
	ops     []operation
}

func newVoucherify(o Options, st *state) *voucherify {
	v := &voucherify{Options: o, tokens: &st.tokens, project: st.project}
	v.ops = v.operations()
	return v
}

func (v *voucherify) operations() []operation {
	return []operation{
		{http.MethodGet, "/v1/vouchers", v.serveVouchers},
		{http.MethodGet, "/v1/vouchers/*", v.serveVoucher},
		{http.MethodPost, "/v1/vouchers/*/balance", v.serveBalance},
		{http.MethodPost, "/v1/vouchers/*/validate", v.serveValidateVoucher},
		{http.MethodPost, "/v1/vouchers/*/redemption", v.serveRedeemVoucher},
		{http.MethodGet, "/v1/campaigns", v.serveCampaigns},
		{http.MethodGet, "/v1/campaigns/*", v.serveCampaign},
		{http.MethodPost, "/v1/campaigns/*/importCSV", v.serveImport},
		{http.MethodGet, "/v1/customers", v.serveCustomers},
		{http.MethodGet, "/v1/customers/*", v.serveCustomer},
		{http.MethodPost, "/v1/validations", v.serveValidate},
		{http.MethodPost, "/v1/redemptions", v.serveRedeem},
		{http.MethodGet, "/v1/redemptions", v.serveRedemptions},

		{http.MethodGet, "/client/v1/vouchers", v.serveVouchers},
		{http.MethodPost, "/client/v1/validations", v.serveValidate},
		{http.MethodPost, "/client/v1/redemptions", v.serveRedeem},
	}
}

func (v *voucherify) serveAPI(w http.ResponseWriter, r *http.Request, body []byte) {
	t, ok := v.tokens.bearer(r)
	if !ok || strings.HasPrefix(r.URL.Path, "/management/") { // which takes no tokens
		v.apiError(w, http.StatusUnauthorized)
		return
	}
	if len(body) > maxBody {
		v.apiError(w, http.StatusRequestEntityTooLarge)
		return
	}
	op, id, allowed := find(v.ops, r)
	if op.serve == nil && allowed == nil {
		v.apiError(w, http.StatusNotFound)
		return
	}
	if op.serve == nil {
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		v.apiError(w, http.StatusMethodNotAllowed)
		return
	}
	if !t.has(scopesFor(op)...) {
		v.apiError(w, http.StatusForbidden)
		return
	}
	if strings.HasPrefix(op.path, "/client/") && r.Header.Get("Origin") == "" {
		e := newVoucherifyError(http.StatusForbidden)
		e.Key, e.Message, e.Details = "forbidden", "Forbidden", "The header Origin is required on the client side"
		e.write(w)
		return
	}
	op.serve(w, &call{Request: r, body: body, id: id, token: t})
}

// scopesFor returns the scopes of which op needs one.
func scopesFor(op operation) []string {
	side, path := "", strings.TrimPrefix(op.path, "/")
	if clientPath, ok := strings.CutPrefix(path, "client/"); ok {
		side, path = "client_", clientPath
	}
	segment := side + strings.Split(path, "/")[1]
	return []string{side + "api", segment, segment + op.access()}
}

// header sets the rate limit that every answer tells. The sandbox limits
// nothing: to see a 429, inject one.
func (v *voucherify) header(h http.Header) {
	h.Set("X-Rate-Limit-Limit", "2000")
	h.Set("X-Rate-Limit-Remaining", "1999")
	h.Set("X-Rate-Limit-Retry", strconv.FormatInt(time.Now().Add(time.Minute).Unix(), 10))
}

// voucherifyError is the API's answer to what it cannot do.
type voucherifyError struct {
	Code         int    `json:"code"`
	Key          string `json:"key,omitempty"`
	Message      string `json:"message"`
	Details      string `json:"details,omitempty"`
	RequestID    string `json:"request_id,omitempty"`
	ResourceID   string `json:"resource_id,omitempty"`
	ResourceType string `json:"resource_type,omitempty"`
}

func newVoucherifyError(status int) *voucherifyError {
	return &voucherifyError{
		Code:      status,
		Key:       statusWord(status, strings.ToLower),
		Message:   http.StatusText(status),
		RequestID: "v-" + strings.ToLower(alphanumerics(16)),
	}
}

func notFound(resourceType, id string) *voucherifyError {
	e := newVoucherifyError(http.StatusNotFound)
	e.Message = "Resource not found"
	e.Details = fmt.Sprintf("Cannot find %s with id %s", resourceType, id)
	e.ResourceID, e.ResourceType = id, resourceType
	return e
}

func invalidPayload(details string) *voucherifyError {
	e := newVoucherifyError(http.StatusBadRequest)
	e.Key, e.Message, e.Details = "invalid_payload", "Invalid payload", details
	return e
}

func (e *voucherifyError) write(w http.ResponseWriter) {
	writeJSON(w, e.Code, jsonType, e)
}

func (v *voucherify) apiError(w http.ResponseWriter, status int) {
	e := newVoucherifyError(status)
	switch status {
	case http.StatusRequestEntityTooLarge: // comes from the framework before the API
		writeJSON(w, status, jsonType, struct {
			StatusCode int    `json:"statusCode"`
			Error      string `json:"error"`
			Message    string `json:"message"`
		}{status, "Request Entity Too Large", fmt.Sprintf("Payload content length greater than maximum allowed: %d", maxBody)})
		return
	case http.StatusForbidden:
		e.Key, e.Message = "missing_required_permission", "Missing required permission"
	case http.StatusNotFound:
		e.Message = "Resource not found"
	case http.StatusTooManyRequests:
		e.Key, e.Message = "", "Too many requests hit the API too quickly."
	}
	e.write(w)
}

// list is how the API lists things: under a name that data_ref tells.
type list struct {
	ref   string
	items any
	total int
}

func (l list) MarshalJSON() ([]byte, error) {
	items, err := json.Marshal(l.items)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, `{"object":"list","data_ref":%q,%q:%s,"total":%d}`, l.ref, l.ref, items, l.total), nil
}

// writeList answers with the page of items that c asks for.
func writeList[T any](w http.ResponseWriter, c *call, ref string, items []T) {
	size, page := 10, 1
	for name, p := range map[string]*int{"limit": &size, "page": &page} {
		text := c.URL.Query().Get(name)
		if text == "" {
			continue
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 100 {
			invalidPayload(name + " must be a number from 1 to 100").write(w)
			return
		}
		*p = n
	}
	start := min((page-1)*size, len(items))
	end := min(start+size, len(items))
	writeJSON(w, http.StatusOK, jsonType, list{ref, append([]T{}, items[start:end]...), len(items)})
}

func (v *voucherify) serveVouchers(w http.ResponseWriter, c *call) {
	writeList(w, c, "vouchers", v.project.allVouchers())
}

func (v *voucherify) serveVoucher(w http.ResponseWriter, c *call) {
	found, ok := v.project.voucher(c.id)
	if !ok {
		notFound("voucher", c.id).write(w)
		return
	}
	writeJSON(w, http.StatusOK, jsonType, found)
}

func (v *voucherify) serveBalance(w http.ResponseWriter, c *call) {
	var sent struct {
		Amount *int64 `json:"amount"`
	}
	if err := json.Unmarshal(c.body, &sent); err != nil || sent.Amount == nil {
		invalidPayload("amount must be a whole number").write(w)
		return
	}
	added, refusal := v.project.addBalance(c.id, *sent.Amount)
	if refusal != nil {
		refusal.write(w)
		return
	}
	writeJSON(w, http.StatusOK, jsonType, added)
}

func (v *voucherify) serveCampaigns(w http.ResponseWriter, c *call) {
	writeList(w, c, "campaigns", v.project.Campaigns)
}

func (v *voucherify) serveCampaign(w http.ResponseWriter, c *call) {
	writeNamed(w, c, "campaign", v.project.Campaigns)
}

func (v *voucherify) serveCustomers(w http.ResponseWriter, c *call) {
	writeList(w, c, "customers", v.project.Customers)
}

func (v *voucherify) serveCustomer(w http.ResponseWriter, c *call) {
	writeNamed(w, c, "customer", v.project.Customers)
}

// serveImport takes any upload and forgets it: imports are asynchronous, so
// there is nothing to see right after a real one either.
func (v *voucherify) serveImport(w http.ResponseWriter, c *call) {
	if _, ok := findNamed(v.project.Campaigns, c.id); !ok {
		notFound("campaign", c.id).write(w)
		return
	}
	writeJSON(w, http.StatusAccepted, jsonType, struct {
		AsyncActionID string `json:"async_action_id"`
	}{"aa_" + alphanumerics(24)})
}

func writeNamed(w http.ResponseWriter, c *call, resourceType string, items []named) {
	found, ok := findNamed(items, c.id)
	if !ok {
		notFound(resourceType, c.id).write(w)
		return
	}
	writeJSON(w, http.StatusOK, jsonType, found)
}

func (v *voucherify) serveValidate(w http.ResponseWriter, c *call) {
	sent, refusal := decodeOrder(c)
	if refusal != nil {
		refusal.write(w)
		return
	}
	writeJSON(w, http.StatusOK, jsonType, v.project.validate(sent))
}

func (v *voucherify) serveRedeem(w http.ResponseWriter, c *call) {
	sent, refusal := decodeOrder(c)
	if refusal != nil {
		refusal.write(w)
		return
	}
	redeemed, refusal := v.project.redeem(sent)
	if refusal != nil {
		refusal.write(w)
		return
	}
	writeJSON(w, http.StatusOK, jsonType, redeemed)
}

func (v *voucherify) serveRedemptions(w http.ResponseWriter, c *call) {
	writeList(w, c, "redemptions", v.project.allRedemptions())
}

// serveValidateVoucher is the older way, of one voucher at a time.
func (v *voucherify) serveValidateVoucher(w http.ResponseWriter, c *call) {
	sent, refusal := decodeOrder(c)
	if refusal != nil {
		refusal.write(w)
		return
	}
	validated := v.project.validate(sent)
	if !validated.Valid {
		notFound("voucher", c.id).write(w)
		return
	}
	found, _ := v.project.voucher(c.id)
	writeJSON(w, http.StatusOK, jsonType, struct {
		Valid      bool      `json:"valid"`
		Code       string    `json:"code"`
		Discount   *discount `json:"discount,omitempty"`
		Gift       *gift     `json:"gift,omitempty"`
		Order      order     `json:"order"`
		TrackingID string    `json:"tracking_id"`
	}{true, found.Code, found.Discount, found.Gift, validated.Order, validated.TrackingID})
}

// serveRedeemVoucher is the older way, of one voucher at a time.
func (v *voucherify) serveRedeemVoucher(w http.ResponseWriter, c *call) {
	sent, refusal := decodeOrder(c)
	if refusal != nil {
		refusal.write(w)
		return
	}
	redeemed, refusal := v.project.redeem(sent)
	if refusal != nil {
		refusal.write(w)
		return
	}
	writeJSON(w, http.StatusOK, jsonType, redeemed.Redemptions[0])
}
