package egress

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

func accessCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "access [--config <path>] [--adapter <name>]",
		Short: "Reports who may do what, by a config",
		Long: `
Lists, for each caller and each route with egress, what a config permits: which
credential's token the caller's requests get, its scopes, operations and limits,
and what the caller has to prove. No server is started, and no secret is read.

"- (anybody)" stands for whoever reaches a route without grants, or has an
address in CLIENTS. A caller with (*) has its rights from a grant to any caller.
Callers without a grant are listed, too.

Logs that would show callers' keys are warned about on the standard error.`,
		Args: cobra.NoArgs,
	}
	var flags configFlags
	flags.register(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		adapted, err := flags.load()
		if err != nil {
			return err
		}
		rows, err := accessOf(adapted)
		if err != nil {
			return err
		}
		if err := warnOfLogsWithKeys(cmd.ErrOrStderr(), adapted); err != nil {
			return err
		}
		if flags.json {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(rows)
		}
		return writeAccess(cmd.OutOrStdout(), rows)
	}
	return cmd
}

// Kinds of access.
const (
	accessByGrant    = "grant"     // a grant names the caller
	accessByAnyGrant = "grant_any" // a grant is to any caller
	accessByAnybody  = "anybody"   // the route has no grants
	accessNone       = "none"      // no grant names the caller
)

// accessRow is what one caller may do on one route.
type accessRow struct {
	Caller string `json:"caller,omitempty"`
	Access string `json:"access"`

	App    string   `json:"app,omitempty"` // of Caddy, if it is not that of HTTP servers
	Server string   `json:"server,omitempty"`
	Listen []string `json:"listen,omitempty"`
	Sites  []string `json:"sites,omitempty"` // host names that the site is for
	Route  []string `json:"route,omitempty"` // conditions, all of which hold

	Credential string   `json:"credential,omitempty"`
	API        string   `json:"api,omitempty"`
	Scopes     []string `json:"scopes,omitempty"`

	RouteAllow []string `json:"route_allow,omitempty"` // both hold
	GrantAllow []string `json:"grant_allow,omitempty"`
	Tenant     string   `json:"tenant,omitempty"`  // its name, or the placeholder that names it
	Tenants    []string `json:"tenants,omitempty"` // that the grant permits
	Limit      string   `json:"limit,omitempty"`
	Reserve    string   `json:"reserve,omitempty"`

	Proof         []string `json:"proof,omitempty"`          // kinds, all of which hold
	CallerClients []string `json:"caller_clients,omitempty"` // addresses that are part of that
	Clients       []string `json:"clients,omitempty"`        // addresses that the route serves
	Hosts         []string `json:"hosts,omitempty"`          // that the route serves, if not the default
	Origins       []string `json:"origins,omitempty"`
}

// accessOf returns what a config permits: to anybody first, then by caller, in the
// order of the routes.
func accessOf(config []byte) ([]accessRow, error) {
	app, routes, err := routesOf(config)
	if err != nil {
		return nil, err
	}
	callers := slices.Sorted(maps.Keys(app.Callers))
	for _, name := range callers {
		if err := app.Callers[name].validate(); err != nil {
			return nil, fmt.Errorf("caller %s: %w", name, err)
		}
	}
	var rows []accessRow
	for _, route := range routes {
		of, err := accessTo(route, app, callers)
		if err != nil {
			return nil, err
		}
		rows = append(rows, of...)
	}
	for _, name := range callers {
		if !slices.ContainsFunc(rows, func(r accessRow) bool { return r.Caller == name }) {
			rows = append(rows, accessRow{Caller: name, Access: accessNone, Proof: app.Callers[name].kinds(), CallerClients: app.Callers[name].Clients})
		}
	}
	slices.SortStableFunc(rows, func(a, b accessRow) int { return strings.Compare(a.Caller, b.Caller) })
	return rows, nil
}

// routesOf returns the egress app of a config, not provisioned, and its routes with
// an egress transport.
func routesOf(config []byte) (*App, []configRoute, error) {
	var parsed struct {
		Apps map[string]json.RawMessage `json:"apps"`
	}
	if err := json.Unmarshal(config, &parsed); err != nil {
		return nil, nil, fmt.Errorf("reading the config: %w", err)
	}
	app := new(App)
	if raw, ok := parsed.Apps["egress"]; ok {
		if err := json.Unmarshal(raw, app); err != nil {
			return nil, nil, fmt.Errorf("reading the egress app: %w", err)
		}
	}
	routes, err := configRoutes(parsed.Apps)
	return app, routes, err
}

// configTransport is a Transport without the options of connections, as a config
// holds it.
type configTransport struct {
	CredentialName string `json:"credential"`
	Credential
	Scopes []string `json:"scopes"`
	Tenant string   `json:"tenant"`
	Grants []Grant  `json:"grant"`
	RouteOptions
}

// accessTo returns what a route permits.
func accessTo(route configRoute, app *App, callers []string) ([]accessRow, error) {
	var t configTransport
	if err := json.Unmarshal(route.transport, &t); err != nil {
		return nil, fmt.Errorf("reading an egress transport: %w", err)
	}
	options := t.RouteOptions.withDefaults(app.RouteOptions)
	if err := options.validate(); err != nil {
		return nil, err
	}
	raw := t.ProviderRaw
	if t.CredentialName != "" {
		credential, ok := app.Credentials[t.CredentialName]
		if !ok {
			return nil, unknownCredential(t.CredentialName, app.Credentials)
		}
		if credential != nil {
			raw = credential.ProviderRaw
		}
	}
	provider, err := unprovisioned(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cmp.Or(t.CredentialName, "provider"), err)
	}
	row := accessRow{
		App: route.app, Server: route.server, Listen: route.listen, Sites: route.hosts, Route: route.steps,
		Tenant: t.Tenant, API: provider.API().URL, RouteAllow: operationTexts(options.Allow), Clients: options.Clients, Hosts: options.Hosts, Origins: options.Origins,
	}
	if row.Credential, row.Scopes, err = tokenOf(t.CredentialName, provider, t.Scopes); err != nil {
		return nil, err
	}
	if t.Grants == nil {
		row.Access = accessByAnybody
		if row.Clients == nil {
			row.Clients = defaultClients
		}
		return []accessRow{row}, nil
	}
	if len(t.Grants) == 0 {
		return nil, errNoGrants
	}
	if row.Clients == nil {
		row.Clients = []string{anyValue}
	}
	var rows []accessRow
	served := make(map[string]bool)
	for i := range t.Grants {
		g := &t.Grants[i]
		if err := g.validate(); err != nil {
			return nil, fmt.Errorf("%s: %w", g, err)
		}
		row.Access, row.GrantAllow, row.Tenants, row.Limit, row.Reserve = accessByGrant, operationTexts(g.Allow), g.Tenants, g.Limit, g.Reserve
		row.Credential, row.Scopes, err = tokenOf(t.CredentialName, provider, effectiveScopes(*g, t.Scopes))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", g, err)
		}
		if err := app.checkCallers(g.Callers); err != nil {
			return nil, fmt.Errorf("%s: %w", g, err)
		}
		names := g.Callers
		if slices.Contains(names, anyCaller) {
			row.Access, names = accessByAnyGrant, callers
		}
		for _, name := range names {
			if served[name] { // the first grant that names it counts
				continue
			}
			served[name] = true
			caller := app.Callers[name]
			row.Caller, row.Proof, row.CallerClients = name, caller.kinds(), caller.Clients
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// tokenOf returns the name of the token that a route with those scopes gets, and
// the scopes that are asked for. The hash in some names depends on the client's
// identifier, which may be a placeholder: … stands for it.
func tokenOf(name string, provider tokenprovider.Provider, scopes []string) (string, []string, error) {
	const hash, shown = "-00000000", "-…"
	if name == "" {
		name = provider.Grant().Provider + hash
	}
	of, scoped, err := withScopes(name, provider, scopes)
	if err != nil {
		return "", nil, err
	}
	if of != name && !strings.HasPrefix(of, name+"+") {
		of = name + hash
	}
	return strings.ReplaceAll(of, hash, shown), scoped.Grant().Scopes, nil
}

func operationTexts(operations []Operation) []string {
	var texts []string
	for _, operation := range operations {
		texts = append(texts, operation.String())
	}
	return texts
}

// kinds returns the kinds of proof of a caller, the strongest first.
func (c *Caller) kinds() []string {
	var kinds []string
	for _, kind := range []struct {
		name   string
		values []string
	}{{"key", c.Key}, {"client_cert", c.ClientCert}, {"user", c.User}, {"clients", c.Clients}} {
		if len(kind.values) > 0 {
			kinds = append(kinds, kind.name)
		}
	}
	return kinds
}

func writeAccess(w io.Writer, rows []accessRow) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(w, "the config has no route with egress, and no caller")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	writeRow(table, "CALLER", "SITE", "ROUTE", "CREDENTIAL", "SCOPES", "OPERATIONS", "LIMITS", "PROOF", "CLIENTS")
	for _, r := range rows {
		cells := []string{
			r.callerText(), r.siteText(), r.routeText(), r.Credential, strings.Join(r.Scopes, " "),
			r.operationsText(), r.limitsText(), strings.Join(r.Proof, " + "), r.clientsText(),
		}
		for i, cell := range cells {
			cells[i] = dash(cell)
		}
		writeRow(table, cells...)
	}
	return table.Flush()
}

func (r accessRow) callerText() string {
	switch r.Access {
	case accessByAnybody:
		return "- (anybody)"
	case accessByAnyGrant:
		return r.Caller + " (*)"
	}
	return r.Caller
}

func (r accessRow) siteText() string {
	where := strings.Join(r.Listen, ", ")
	switch {
	case r.App != "":
		return "app " + r.App
	case where == "" && r.Server != "":
		where = "server " + r.Server
	}
	if len(r.Sites) > 0 {
		where = strings.Join(r.Sites, ", ") + " on " + where
	}
	return where
}

func (r accessRow) routeText() string {
	if r.Credential != "" && len(r.Route) == 0 {
		return "*"
	}
	return strings.Join(r.Route, ", ")
}

func (r accessRow) operationsText() string {
	route, grant := strings.Join(r.RouteAllow, "; "), strings.Join(r.GrantAllow, "; ")
	switch {
	case r.Access == accessNone:
		return "none (no grant)"
	case route == "" && grant == "":
		return "any"
	case route == "" || grant == "":
		return route + grant
	}
	return grant + " within " + route
}

func (r accessRow) limitsText() string {
	var limits []string
	switch {
	case r.Tenants != nil:
		limits = append(limits, "tenants "+strings.Join(r.Tenants, " "))
	case isTenantName(r.Tenant):
		limits = append(limits, "tenant "+r.Tenant)
	case r.Tenant != "":
		limits = append(limits, "any tenant")
	}
	if r.Limit != "" {
		limits = append(limits, r.Limit)
	}
	if r.Reserve != "" {
		limits = append(limits, "reserve "+r.Reserve)
	}
	return strings.Join(limits, ", ")
}

// clientsText returns the addresses from which requests are served: those that
// the caller proves, within those of the route.
func (r accessRow) clientsText() string {
	route, caller := strings.Join(r.Clients, " "), strings.Join(r.CallerClients, " ")
	switch {
	case caller == "":
		return route
	case route == "" || slices.Contains(r.Clients, anyValue):
		return caller
	}
	return caller + " within " + route
}
