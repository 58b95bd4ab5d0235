package egress

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// configRoute is an egress transport in a config, and which requests get there.
// Of all handlers, only the conditions under which they run are looked at, so
// fewer requests may get there than it says, and none more.
type configRoute struct {
	app    string // set unless it is an HTTP server's
	server string
	listen []string
	hosts  []string // that the server's own routes are for; nil: any
	steps  []string // further conditions, all of which hold

	transport json.RawMessage
}

// with returns the route with one more condition.
func (r configRoute) with(step string) configRoute {
	r.steps = append(slices.Clip(r.steps), step)
	return r
}

// configRoutes returns the egress transports in the apps of a config, in an order
// that is always the same: that of the config where it has one.
func configRoutes(apps map[string]json.RawMessage) ([]configRoute, error) {
	w := new(routeWalk)
	for _, name := range slices.Sorted(maps.Keys(apps)) {
		var err error
		switch name {
		case "egress":
		case "http":
			err = w.visitServers(apps[name])
		default:
			err = w.visit(apps[name], configRoute{app: name})
		}
		if err != nil {
			return nil, fmt.Errorf("reading the app %s: %w", name, err)
		}
	}
	return w.found, nil
}

// routeWalk goes through a config.
type routeWalk struct {
	found []configRoute

	// of the server that is visited
	named    map[string]json.RawMessage
	invoked  map[string]bool
	invoking []string
}

func (w *routeWalk) visitServers(app json.RawMessage) error {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(app, &object); err != nil {
		return err
	}
	var servers map[string]map[string]json.RawMessage
	if raw, ok := object["servers"]; ok {
		if err := json.Unmarshal(raw, &servers); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(servers)) {
		if err := w.visitServer(configRoute{server: name}, servers[name]); err != nil {
			return fmt.Errorf("server %s: %w", name, err)
		}
	}
	delete(object, "servers")
	return w.visitFields(object, configRoute{app: "http"})
}

func (w *routeWalk) visitServer(at configRoute, server map[string]json.RawMessage) error {
	w.named, w.invoked = nil, make(map[string]bool)
	at.listen = stringsIn(server["listen"])
	if raw, ok := server["named_routes"]; ok {
		if err := json.Unmarshal(raw, &w.named); err != nil {
			return err
		}
	}
	if err := w.visitRoutes(server["routes"], at); err != nil {
		return err
	}
	if err := w.visit(server["errors"], at.with("on an error")); err != nil {
		return err
	}
	rest := maps.Clone(server)
	for _, seen := range []string{"listen", "named_routes", "routes", "errors"} {
		delete(rest, seen)
	}
	if err := w.visitFields(rest, at); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(w.named)) {
		if w.invoked[name] {
			continue
		}
		if err := w.visit(w.named[name], at.with("named route "+name+", which nothing invokes")); err != nil {
			return err
		}
	}
	return nil
}

// visit notes the egress transports in raw.
func (w *routeWalk) visit(raw json.RawMessage, at configRoute) error {
	switch trimmed := bytes.TrimSpace(raw); {
	case bytes.HasPrefix(trimmed, []byte("{")):
		var object map[string]json.RawMessage
		if err := json.Unmarshal(raw, &object); err != nil {
			return err
		}
		return w.visitObject(raw, object, at)
	case bytes.HasPrefix(trimmed, []byte("[")):
		var array []json.RawMessage
		if err := json.Unmarshal(raw, &array); err != nil {
			return err
		}
		for _, element := range array {
			if err := w.visit(element, at); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *routeWalk) visitObject(raw json.RawMessage, object map[string]json.RawMessage, at configRoute) error {
	if textIn(object["protocol"]) == "egress" {
		at.transport = raw
		w.found = append(w.found, at)
		return nil
	}
	if match, ok := object["match"]; ok {
		at = at.matching(match)
		delete(object, "match")
	}
	if name := textIn(object["name"]); textIn(object["handler"]) == "invoke" && !slices.Contains(w.invoking, name) {
		w.invoked[name] = true
		w.invoking = append(w.invoking, name)
		err := w.visit(w.named[name], at.with("named route "+name))
		w.invoking = w.invoking[:len(w.invoking)-1]
		return err
	}
	return w.visitFields(object, at)
}

// visitFields visits what an object holds, a transport before what handles its
// answers.
func (w *routeWalk) visitFields(object map[string]json.RawMessage, at configRoute) error {
	names := slices.SortedFunc(maps.Keys(object), func(a, b string) int {
		return cmp.Or(-compareBool(a == "transport", b == "transport"), strings.Compare(a, b))
	})
	for _, name := range names {
		visit := w.visit
		switch name {
		case "routes":
			visit = w.visitRoutes
		case "handle_response":
			visit = w.visitResponses
		}
		if err := visit(object[name], at); err != nil {
			return err
		}
	}
	return nil
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// visitRoutes visits a list of routes. Of those of a group, the first that
// matches is run.
func (w *routeWalk) visitRoutes(raw json.RawMessage, at configRoute) error {
	var routes []json.RawMessage
	if json.Unmarshal(raw, &routes) != nil {
		return w.visit(raw, at)
	}
	groups := make(map[string]bool)
	for _, raw := range routes {
		var route struct {
			Group string          `json:"group"`
			Match json.RawMessage `json:"match"`
		}
		here := at
		if json.Unmarshal(raw, &route) == nil && route.Group != "" {
			if groups[route.Group] && route.Match == nil {
				here = at.with("otherwise")
			}
			groups[route.Group] = true
		}
		if err := w.visit(raw, here); err != nil {
			return err
		}
	}
	return nil
}

// visitResponses visits the handlers of responses of a proxy.
func (w *routeWalk) visitResponses(raw json.RawMessage, at configRoute) error {
	var handlers []map[string]json.RawMessage
	if json.Unmarshal(raw, &handlers) != nil {
		return w.visit(raw, at)
	}
	for _, handler := range handlers {
		step := "after a response"
		if match, ok := handler["match"]; ok {
			step += " " + responseText(match)
			delete(handler, "match")
		}
		if err := w.visitFields(handler, at.with(step)); err != nil {
			return err
		}
	}
	return nil
}

// matching returns the route with the condition that one of the matcher sets
// matches. The outermost hosts are those of the site.
func (r configRoute) matching(raw json.RawMessage) configRoute {
	var sets []map[string]json.RawMessage
	if err := json.Unmarshal(raw, &sets); err != nil {
		return r.with("match (…)")
	}
	if len(r.steps) == 0 && r.hosts == nil {
		var hosts []string
		for _, set := range sets {
			of := stringsIn(set["host"])
			if len(set) != 1 || of == nil {
				hosts = nil
				break
			}
			hosts = append(hosts, of...)
		}
		if hosts != nil {
			r.hosts = hosts
			return r
		}
	}
	if text := setsText(sets); text != "" {
		return r.with(text)
	}
	return r
}

// plainMatchers are said first, the last of them before the others.
var plainMatchers = []string{"method", "path_regexp", "path", "host"}

// setsText says what matcher sets match; nothing if that is everything.
func setsText(sets []map[string]json.RawMessage) string {
	var either []string
	for _, set := range sets {
		var all []string
		names := slices.SortedFunc(maps.Keys(set), func(a, b string) int {
			return cmp.Or(slices.Index(plainMatchers, b)-slices.Index(plainMatchers, a), strings.Compare(a, b))
		})
		for _, name := range names {
			all = append(all, matcherText(name, set[name]))
		}
		if all == nil {
			return ""
		}
		either = append(either, strings.Join(all, " and "))
	}
	return strings.Join(either, " or ")
}

// matcherText says what a matcher matches. Values of headers and the like may be
// secret, so that only their names are said; … stands for what is not.
func matcherText(name string, raw json.RawMessage) string {
	var values []string
	switch name {
	case "host", "path", "method":
		values = stringsIn(raw)
	case "protocol":
		values = []string{textIn(raw)}
	case "remote_ip", "client_ip":
		var matcher struct {
			Ranges []string `json:"ranges"`
		}
		_ = json.Unmarshal(raw, &matcher) // then it has none
		values = matcher.Ranges
	case "path_regexp":
		var matcher struct {
			Pattern string `json:"pattern"`
		}
		_ = json.Unmarshal(raw, &matcher)
		values = []string{matcher.Pattern}
	case "header", "header_regexp", "query", "vars", "vars_regexp":
		var matcher map[string]json.RawMessage
		_ = json.Unmarshal(raw, &matcher)
		for _, key := range slices.Sorted(maps.Keys(matcher)) {
			values = append(values, key+"=…")
		}
	case "not":
		var sets []map[string]json.RawMessage
		if json.Unmarshal(raw, &sets) == nil && setsText(sets) != "" {
			return "not (" + setsText(sets) + ")"
		}
	}
	if text := strings.Join(values, " "); text != "" {
		return name + " " + text
	}
	return name + " (…)"
}

// responseText says which responses a handler of responses is for.
func responseText(raw json.RawMessage) string {
	var matcher struct {
		StatusCode []int                      `json:"status_code"`
		Headers    map[string]json.RawMessage `json:"headers"`
	}
	if err := json.Unmarshal(raw, &matcher); err != nil {
		return "(…)"
	}
	var all []string
	var codes []string
	for _, code := range matcher.StatusCode {
		text := strconv.Itoa(code)
		if code < 10 { // a class of them
			text += "xx"
		}
		codes = append(codes, text)
	}
	if codes != nil {
		all = append(all, "with status "+strings.Join(codes, " "))
	}
	for _, name := range slices.Sorted(maps.Keys(matcher.Headers)) {
		all = append(all, "with header "+name+"=…")
	}
	return strings.Join(all, " and ")
}

// stringsIn returns the strings in raw; nil if it holds something else.
func stringsIn(raw json.RawMessage) []string {
	var values []string
	if json.Unmarshal(raw, &values) != nil {
		return nil
	}
	return values
}

// textIn returns the string in raw; empty if it holds something else.
func textIn(raw json.RawMessage) string {
	var value string
	_ = json.Unmarshal(raw, &value)
	return value
}
