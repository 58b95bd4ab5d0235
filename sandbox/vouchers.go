package sandbox

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"
)

// This file keeps what a client of the Voucherify API sees and changes.

//go:embed samples/voucherify.json
var voucherifySamples []byte

// project is that of the app. Campaigns and customers never change.
type project struct {
	clientID  string
	Campaigns []named `json:"campaigns"`
	Customers []named `json:"customers"`

	mu          sync.Mutex
	Vouchers    []*voucher `json:"vouchers"`
	redemptions []redemption
}

func newProject() (*project, error) {
	p := &project{clientID: alphanumerics(21)}
	if err := json.Unmarshal(voucherifySamples, p); err != nil {
		return nil, fmt.Errorf("reading the samples of Voucherify: %w", err)
	}
	return p, nil
}

// named is a JSON object that is found by its id or by another name.
type named struct {
	id, name string
	json     json.RawMessage
}

func (n named) MarshalJSON() ([]byte, error) { return n.json, nil }

func (n *named) UnmarshalJSON(b []byte) error {
	var sample struct {
		ID       string `json:"id"`
		Name     string `json:"name"`
		SourceID string `json:"source_id"` // what a customer is found by, instead of the name
	}
	err := json.Unmarshal(b, &sample)
	n.id, n.name, n.json = sample.ID, sample.Name, slices.Clone(b)
	if sample.SourceID != "" {
		n.name = sample.SourceID
	}
	return err
}

func findNamed(items []named, id string) (named, bool) {
	i := slices.IndexFunc(items, func(n named) bool { return n.id == id || n.name == id })
	if i < 0 {
		return named{}, false
	}
	return items[i], true
}

type voucher struct {
	ID         string         `json:"id"`
	Code       string         `json:"code"`
	Campaign   *string        `json:"campaign"`
	Type       string         `json:"type"`
	Discount   *discount      `json:"discount"`
	Gift       *gift          `json:"gift"`
	Redemption uses           `json:"redemption"`
	Active     bool           `json:"active"`
	Metadata   map[string]any `json:"metadata"`
	CreatedAt  time.Time      `json:"created_at"`
	IsReferral bool           `json:"is_referral_code"`
	Object     string         `json:"object"`
}

type discount struct {
	Type       string  `json:"type"`
	AmountOff  int64   `json:"amount_off,omitempty"`
	PercentOff float64 `json:"percent_off,omitempty"`
	Effect     string  `json:"effect"`
}

type gift struct {
	Amount  int64  `json:"amount"`
	Balance int64  `json:"balance"`
	Effect  string `json:"effect"`
}

type uses struct {
	Quantity *int64 `json:"quantity"`
	Redeemed int64  `json:"redeemed_quantity"`
	Object   string `json:"object"`
}

// off is what v takes from an amount.
func (v *voucher) off(amount int64) int64 {
	switch {
	case v.Gift != nil:
		return min(v.Gift.Balance, amount)
	case v.Discount != nil && v.Discount.Type == "PERCENT":
		return int64(float64(amount) * v.Discount.PercentOff / 100)
	case v.Discount != nil:
		return min(v.Discount.AmountOff, amount)
	}
	return 0
}

// snapshot returns a copy that can be encoded without the lock.
func (v *voucher) snapshot() voucher {
	c := *v
	if v.Gift != nil {
		g := *v.Gift
		c.Gift = &g
	}
	return c
}

// get finds a voucher by code or id. The caller holds the lock.
func (p *project) get(code string) (*voucher, bool) {
	i := slices.IndexFunc(p.Vouchers, func(v *voucher) bool { return v.Code == code || v.ID == code })
	if i < 0 {
		return nil, false
	}
	return p.Vouchers[i], true
}

func (p *project) voucher(code string) (voucher, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, ok := p.get(code)
	if !ok {
		return voucher{}, false
	}
	return v.snapshot(), true
}

func (p *project) allVouchers() []voucher {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]voucher, len(p.Vouchers))
	for i, v := range p.Vouchers {
		all[i] = v.snapshot()
	}
	return all
}

func (p *project) allRedemptions() []redemption {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.redemptions)
}

type balance struct {
	Amount  int64  `json:"amount"`
	Total   int64  `json:"total"`
	Balance int64  `json:"balance"`
	Type    string `json:"type"`
	Object  string `json:"object"`
	Related struct {
		Type string `json:"type"`
		ID   string `json:"id"`
	} `json:"related_object"`
}

// addBalance credits a gift card, each time that it is asked to.
func (p *project) addBalance(code string, amount int64) (balance, *voucherifyError) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, ok := p.get(code)
	if !ok {
		return balance{}, notFound("voucher", code)
	}
	if v.Gift == nil {
		return balance{}, invalidPayload("the voucher is no gift card")
	}
	if v.Gift.Balance+amount < 0 {
		return balance{}, invalidPayload("the balance would be negative")
	}
	v.Gift.Amount += amount
	v.Gift.Balance += amount
	b := balance{Amount: amount, Total: v.Gift.Amount, Balance: v.Gift.Balance, Type: "gift_voucher", Object: "balance"}
	b.Related.Type, b.Related.ID = "voucher", v.ID
	return b, nil
}

// sentOrder is an order and what is to be redeemed with it.
type sentOrder struct {
	Redeemables []wanted `json:"redeemables"`
	Order       struct {
		Amount int64 `json:"amount"`
	} `json:"order"`
}

type wanted struct {
	Object string `json:"object"`
	ID     string `json:"id"`
}

// decodeOrder reads the order in c. Where the path names the voucher, the body
// need not, and may be missing.
func decodeOrder(c *call) (sentOrder, *voucherifyError) {
	var sent sentOrder
	if len(c.body) > 0 || c.id == "" {
		if err := json.Unmarshal(c.body, &sent); err != nil {
			return sent, invalidPayload("the body must be a JSON object with redeemables and an order")
		}
	}
	if c.id != "" {
		sent.Redeemables = []wanted{{Object: "voucher", ID: c.id}}
	}
	if len(sent.Redeemables) == 0 {
		return sent, invalidPayload("redeemables must not be empty")
	}
	if sent.Order.Amount < 0 {
		return sent, invalidPayload("order.amount must not be negative")
	}
	return sent, nil
}

type order struct {
	Amount               int64  `json:"amount"`
	DiscountAmount       int64  `json:"discount_amount"`
	TotalDiscountAmount  int64  `json:"total_discount_amount"`
	TotalAmount          int64  `json:"total_amount"`
	AppliedAmount        int64  `json:"applied_discount_amount"`
	TotalAppliedDiscount int64  `json:"total_applied_discount_amount"`
	Object               string `json:"object"`
}

func newOrder(amount, off int64) order {
	return order{amount, off, off, amount - off, off, off, "order"}
}

type validation struct {
	Valid        bool         `json:"valid"`
	Redeemables  []redeemable `json:"redeemables"`
	Skipped      []redeemable `json:"skipped_redeemables"`
	Inapplicable []redeemable `json:"inapplicable_redeemables"`
	Order        order        `json:"order"`
	TrackingID   string       `json:"tracking_id"`
}

type redeemable struct {
	Status string `json:"status"`
	ID     string `json:"id"`
	Object string `json:"object"`
	Order  *order `json:"order,omitempty"`
	Result struct {
		Discount *discount        `json:"discount,omitempty"`
		Gift     *gift            `json:"gift,omitempty"`
		Error    *voucherifyError `json:"error,omitempty"`
	} `json:"result"`
}

// validate tells what redeem would do.
func (p *project) validate(sent sentOrder) validation {
	p.mu.Lock()
	defer p.mu.Unlock()
	val := validation{
		Redeemables: []redeemable{}, Skipped: []redeemable{}, Inapplicable: []redeemable{},
		TrackingID: "track_" + alphanumerics(20),
	}
	rest := sent.Order.Amount
	for _, item := range sent.Redeemables {
		res := redeemable{ID: item.ID, Object: item.Object}
		v, ok := p.get(item.ID)
		if !ok {
			res.Status, res.Result.Error = "INAPPLICABLE", notFound("voucher", item.ID)
			val.Inapplicable = append(val.Inapplicable, res)
			continue
		}
		off := v.off(rest)
		o := newOrder(rest, off)
		rest -= off
		copied := v.snapshot()
		res.Status, res.Order = "APPLICABLE", &o
		res.Result.Discount, res.Result.Gift = copied.Discount, copied.Gift
		val.Redeemables = append(val.Redeemables, res)
	}
	val.Valid = len(val.Inapplicable) == 0
	val.Order = newOrder(sent.Order.Amount, sent.Order.Amount-rest)
	return val
}

type redemption struct {
	ID          string    `json:"id"`
	Object      string    `json:"object"`
	Date        time.Time `json:"date"`
	TrackingID  string    `json:"tracking_id"`
	Result      string    `json:"result"`
	Amount      int64     `json:"amount"`
	Order       order     `json:"order"`
	RelatedType string    `json:"related_object_type"`
	RelatedID   string    `json:"related_object_id"`
	Voucher     *voucher  `json:"voucher,omitempty"`
}

type redemptions struct {
	Redemptions  []redemption `json:"redemptions"`
	Parent       redemption   `json:"parent_redemption"`
	Order        order        `json:"order"`
	Skipped      []redeemable `json:"skipped_redeemables"`
	Inapplicable []redeemable `json:"inapplicable_redeemables"`
}

// redeem uses all redeemables of an order, or none.
func (p *project) redeem(sent sentOrder) (redemptions, *voucherifyError) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, item := range sent.Redeemables {
		if _, ok := p.get(item.ID); !ok {
			return redemptions{}, notFound("voucher", item.ID)
		}
	}

	done := redemptions{Skipped: []redeemable{}, Inapplicable: []redeemable{}}
	tracking := "track_" + alphanumerics(20)
	rest := sent.Order.Amount
	for _, item := range sent.Redeemables {
		v, _ := p.get(item.ID)
		off := v.off(rest)
		v.Redemption.Redeemed++
		if v.Gift != nil {
			v.Gift.Balance -= off
		}
		copied := v.snapshot()
		r := newRedemption(tracking, newOrder(rest, off), "voucher", v.ID)
		r.Voucher = &copied
		rest -= off
		done.Redemptions = append(done.Redemptions, r)
	}
	p.redemptions = append(p.redemptions, done.Redemptions...)
	done.Order = newOrder(sent.Order.Amount, sent.Order.Amount-rest)
	done.Parent = newRedemption(tracking, done.Order, "redemption", done.Redemptions[0].ID)
	return done, nil
}

func newRedemption(tracking string, o order, relatedType, relatedID string) redemption {
	return redemption{
		ID:          "r_" + alphanumerics(22),
		Object:      "redemption",
		Date:        time.Now().UTC(),
		TrackingID:  tracking,
		Result:      "SUCCESS",
		Amount:      o.TotalAppliedDiscount,
		Order:       o,
		RelatedType: relatedType,
		RelatedID:   relatedID,
	}
}
