package sandbox

import (
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

const everyUnderstoryScope = "openid offline booking.read booking.write event.read experience.read order.read marketing.read webhook.read webhook.write"

func TestUnderstoryTokenIsAsLongAsTheRealOne(t *testing.T) {
	if n := len(understoryGrant(t, newServerFor(t, apiUnderstory), "openid")); n != 1184 {
		t.Errorf("%d characters", n)
	}
}

func TestUnderstoryAuthentication(t *testing.T) {
	s := newServerWith(t, Options{API: apiUnderstory, ClientID: "me", ClientSecret: "a~b"})
	for _, tc := range []struct {
		name, body string
		basicID    string
		want       int
	}{
		{"plain tilde", "client_id=me&client_secret=a~b", "", 200},
		{"encoded tilde", "client_id=me&client_secret=a%7Eb", "", 200},
		{"no secret", "client_id=me", "", 401},
		{"Basic of an unknown client", "x=y", "you", 401},
		{"Basic beside the body", "client_id=me&client_secret=a~b", "me", 200},
		{"broken form", "client_id=%zz", "", 400},
		{"credentials in the query", "x=y", "", 400},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := post("/oauth2/token?client_id=me&client_secret=a~b", nil)
			r.Body = httptest.NewRequest("POST", "/", strings.NewReader("grant_type=client_credentials&"+tc.body)).Body
			if tc.basicID != "" {
				r.SetBasicAuth(tc.basicID, "a~b")
			}
			wantStatus(t, serve(s, r), tc.want)
		})
	}
}

func TestUnderstoryOAuthIsPostOnly(t *testing.T) {
	s := newServerFor(t, apiUnderstory)
	for _, path := range []string{"/oauth2/token", "/oauth2/revoke", "/admin/oauth2/introspect"} {
		w := send(s, "GET", path, "", "")
		wantStatus(t, w, 405)
		if w.Header().Get("Allow") != "POST" {
			t.Errorf("%s: Allow %q", path, w.Header().Get("Allow"))
		}
	}
}

func TestUnderstoryRevocationAsksForTheClient(t *testing.T) {
	s := newServerFor(t, apiUnderstory)
	value := understoryGrant(t, s, "")
	wantStatus(t, serve(s, post("/oauth2/revoke", url.Values{"token": {value}, "client_id": {"sandbox"}, "client_secret": {"wrong"}})), 401)
	wantStatus(t, send(s, "GET", "/v1/me", value, ""), 200)
}

func TestUnderstoryTokenWithoutAudience(t *testing.T) {
	s := newServerFor(t, apiUnderstory)
	value := granted(t, s, post("/oauth2/token", url.Values{
		"grant_type": {"client_credentials"}, "client_id": {"sandbox"}, "client_secret": {"sandbox-secret"},
	}))
	wantBody(t, send(s, "GET", "/v1/me", value, ""), 401, `{"code":"UNAUTHORIZED","message":"Unauthorized"}`)
}

func TestUnderstoryOperations(t *testing.T) {
	s := newServerFor(t, apiUnderstory)
	value := understoryGrant(t, s, everyUnderstoryScope)
	none := understoryGrant(t, s, "openid")
	for _, tc := range []struct {
		method, path, token string
		headers             []string
		status              int
		contains            string
	}{
		{"GET", "/v1/me", none, nil, 200, `"company_name":"Sandbox Adventures"`},
		{"GET", "/v1/bookings", value, nil, 200, `"id":"Bk1aQ7wE3rT5yU9iO2pZ"`},
		{"HEAD", "/v1/bookings", value, nil, 200, ""},
		{"GET", "/v1/bookings/Bk2sD4fG6hJ8kL1zX3cV", value, nil, 200, `"status":"CHECKED_IN"`},
		{"GET", "/v1/bookings/nope", value, nil, 404, `{"code":"NOT_FOUND","message":"Not Found"}`},
		{"GET", "/v1/bookings", none, nil, 403, `"code":"UNAUTHORIZED"`},
		{"POST", "/v1/bookings", none, nil, 403, "booking.write"},
		{"DELETE", "/v1/bookings", value, nil, 405, `"code":"METHOD_NOT_ALLOWED"`},
		{"GET", "/v1/bookings/Bk1aQ7wE3rT5yU9iO2pZ/tickets", value, nil, 200, `"check_in":`},
		{"GET", "/v1/bookings/Bk1aQ7wE3rT5yU9iO2pZ/information-request-answers", value, nil, 200, `"items":[{`},
		{"GET", "/v1/bookings/nope/tickets", value, nil, 404, `"code":"NOT_FOUND"`},
		{"GET", "/v1/bookings/Bk1aQ7wE3rT5yU9iO2pZ/tickets", none, nil, 403, `"code":"UNAUTHORIZED"`},
		{"GET", "/v1/events", value, nil, 200, `"capacity":{"reserved":6,"total":12}`},
		{"GET", "/v1/events/Ev1kL6jH8gF4dS2aQ0wE", value, nil, 200, `"sessions":[{"end_time":`},
		{"GET", "/v1/events?limit=500", value, nil, 200, `"items":[{`},
		{"GET", "/v1/events?limit=501", value, nil, 400, "limit"},
		{"GET", "/v1/event-availabilities?experienceId=Xp1qW2eR3tY4uI5oP6aS", value, nil, 200, `"constraints":[{`},
		{"GET", "/v1/event-availabilities", value, nil, 400, "experienceId"},
		{"GET", "/v1/event-availabilities?experience_id=Xp1qW2eR3tY4uI5oP6aS", value, nil, 400, "experienceId"},
		{"GET", "/v1/event-availabilities/Ev3pO5iU7yT9rE1wQ2aS", value, nil, 200, `"available":false`},
		{"GET", "/v1/experiences", value, nil, 400, "Accept-Language"},
		{"GET", "/v1/experiences", value, []string{"Accept-Language", "da"}, 200, "Harbour"},
		{"GET", "/v1/experiences/Xp1qW2eR3tY4uI5oP6aS", value, nil, 400, "Accept-Language"},
		{"GET", "/v1/experiences/Xp1qW2eR3tY4uI5oP6aS/information-requests", value, nil, 400, "Accept-Language"},
		{"GET", "/v1/experiences/Xp1qW2eR3tY4uI5oP6aS/ticket-variants", value, nil, 400, "Accept-Language"},
		{"GET", "/v1/experiences/Xp1qW2eR3tY4uI5oP6aS/ticket-variants", value, []string{"Accept-Language", "da"}, 200, `"currency":"DKK"`},
		{"GET", "/v1/orders", value, nil, 200, `"totals":{"amount":`},
		{"GET", "/v1/orders/Or1zA3xS5cD7vF9bG2nH/line-items", value, nil, 200, `"item_type":"VARIANT"`},
		{"GET", "/v1/orders/Or1zA3xS5cD7vF9bG2nH/transactions", value, nil, 200, `"items":[{`},
		{"GET", "/v1/orders/Or1zA3xS5cD7vF9bG2nH/refunds", value, nil, 200, `{"items":[]}`},
		{"GET", "/v1/orders/nope/refunds", value, nil, 404, "NOT_FOUND"},
		{"GET", "/v1/marketing-consents", value, nil, 200, `"company_id":"9Tq2nVb4cX7mKd1Lw0Zs"`},
		{"GET", "/v1/gift-cards", none, nil, 200, `"items":[{`}, // no scope is published
		{"GET", "/v1/webhook-subscriptions", value, nil, 200, `"event_types":["v1.booking.created"]`},
		{"GET", "/v1/nothing", value, nil, 404, "NOT_FOUND"},
		{"GET", "/v2/me", value, nil, 404, "NOT_FOUND"},
		{"GET", "//v1/me", value, nil, 404, "NOT_FOUND"},
		{"GET", "/v1/bookings/", value, nil, 404, "NOT_FOUND"},
	} {
		w := send(s, tc.method, tc.path, tc.token, "", tc.headers...)
		wantStatus(t, w, tc.status)
		if !strings.Contains(w.Body.String(), tc.contains) {
			t.Errorf("%s %s: no %s in %s", tc.method, tc.path, tc.contains, w.Body)
		}
	}
	if got := send(s, "PATCH", "/v1/bookings", value, "").Header().Get("Allow"); got != "GET, POST" {
		t.Errorf("Allow %q", got)
	}
}

type testPage struct {
	Next  *string `json:"next"`
	Items []struct {
		ID string `json:"id"`
	} `json:"items"`
}

func TestUnderstoryPages(t *testing.T) {
	s := newServerFor(t, apiUnderstory)
	value := understoryGrant(t, s, everyUnderstoryScope)
	var ids []string
	pages, cursor := 0, ""
	for {
		p := decode[testPage](t, send(s, "GET", "/v1/bookings?limit=2&sort=%2Bcreated_at&cursor="+cursor, value, ""))
		pages++
		for _, it := range p.Items {
			ids = append(ids, it.ID)
		}
		if p.Next == nil || pages > 2 {
			break
		}
		cursor = *p.Next
	}
	if pages != 2 || strings.Join(ids, " ") != "Bk1aQ7wE3rT5yU9iO2pZ Bk2sD4fG6hJ8kL1zX3cV Bk3bN5mQ7wE9rT2yU4iO" {
		t.Errorf("%d pages: %v", pages, ids)
	}
	for _, query := range []string{"limit=0", "limit=101", "limit=x", "cursor=x", "cursor=" + encodeCursor(-1), "sort=+created_at", "sort=name"} {
		wantStatus(t, send(s, "GET", "/v1/bookings?"+query, value, ""), 400)
	}
	if p := decode[testPage](t, send(s, "GET", "/v1/bookings?sort=-created_at", value, "")); p.Items[0].ID != ids[2] {
		t.Errorf("sorted from the last on, the first is %s", p.Items[0].ID)
	}
	wantBody(t, send(s, "GET", "/v1/bookings?cursor="+encodeCursor(99), value, ""), 200, `{"items":[]}`)
}

func TestUnderstoryBookingsAreNotIdempotent(t *testing.T) {
	s := newServerFor(t, apiUnderstory)
	value := understoryGrant(t, s, everyUnderstoryScope)
	var ids [2]string
	for i := range ids {
		w := send(s, "POST", "/v1/bookings", value, `{"id":"mine","event_id":"Ev1kL6jH8gF4dS2aQ0wE","locale":"da"}`)
		ids[i] = decode[struct{ ID string }](t, w).ID
		wantBody(t, w, 201, `{"id":"`+ids[i]+`","status":"ACTIVE"}`)
		got := decode[struct{ ID, Status, Locale string }](t, send(s, "GET", "/v1/bookings/"+ids[i], value, ""))
		if got.ID != ids[i] || got.Status != "ACTIVE" || got.Locale != "da" {
			t.Errorf("%+v", got)
		}
	}
	if ids[0] == ids[1] || ids[0] == "mine" || ids[0] == "" {
		t.Errorf("%v", ids)
	}
	if p := decode[testPage](t, send(s, "GET", "/v1/bookings", value, "")); len(p.Items) != 5 {
		t.Errorf("%d bookings, want 5", len(p.Items))
	}
	for _, body := range []string{"", "[]", "null", `{"a":`} {
		wantStatus(t, send(s, "POST", "/v1/bookings", value, body), 400)
	}
}

func TestUnderstoryWebhookSubscriptions(t *testing.T) {
	s := newServerFor(t, apiUnderstory)
	value := understoryGrant(t, s, everyUnderstoryScope)
	type subscription struct {
		ID, URL, State, Secret string
		CreatedAt              string `json:"created_at"`
		UpdatedAt              string `json:"updated_at"`
	}
	w := send(s, "POST", "/v1/webhook-subscriptions", value, `{"url":"https://a.example","event_types":["v1.booking.created"],"state":"DISABLED"}`)
	wantStatus(t, w, 201)
	made := decode[subscription](t, w)
	if made.URL != "https://a.example" || made.State != "DISABLED" || made.Secret == "" || made.CreatedAt == "" || made.UpdatedAt == "" {
		t.Errorf("made %+v", made)
	}
	path := "/v1/webhook-subscriptions/" + made.ID
	wantStatus(t, send(s, "PUT", path, value, `{"id":"mine","url":"https://b.example"}`), 200)
	if got := decode[subscription](t, send(s, "GET", path, value, "")); got.URL != "https://b.example" || got.ID != made.ID || got.Secret != made.Secret {
		t.Errorf("replaced by %+v", got)
	}
	wantStatus(t, send(s, "PUT", path, value, `[]`), 400)
	wantBody(t, send(s, "DELETE", path, value, ""), 204, "")
	for _, method := range []string{"GET", "DELETE"} {
		wantStatus(t, send(s, method, path, value, ""), 404)
	}
	wantStatus(t, send(s, "PUT", path, value, `{}`), 404)
}
