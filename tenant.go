package egress

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// defaultMaxTenants is how many tenants of a credential are live at a time.
const defaultMaxTenants = 1000

// isTenantName reports whether name can be that of a tenant: as that of a
// credential. It can stand in a path or URL and be one element of it, and nothing
// else.
func isTenantName(name string) bool { return credentialName.MatchString(name) }

// hasTenants reports whether the credential has a value of its own for each tenant.
func (c *Credential) hasTenants() bool {
	return bytes.Contains(c.ProviderRaw, []byte(option.Tenant)) || c.hasTenantFiles()
}

// files returns the files of authorities and of the certificate.
func (c *Credential) files() []string {
	files := c.TokenCA
	if c.TokenCert != nil {
		files = append(slices.Clip(files), c.TokenCert.Certificate, c.TokenCert.Key)
	}
	return files
}

// hasTenantFiles reports whether each tenant has authorities or a certificate of its own.
func (c *Credential) hasTenantFiles() bool {
	return slices.ContainsFunc(c.files(), func(file string) bool { return strings.Contains(file, option.Tenant) })
}

// tenantValues returns the values with {tenant} in them that name files, as option.Resolve
// and option.ReadFile read them.
func (c *Credential) tenantValues() []string {
	var values []string
	add := func(value string) {
		if strings.Contains(value, option.Tenant) && strings.Contains(value, "{file.") {
			values = append(values, value)
		}
	}
	var walk func(any)
	walk = func(value any) {
		switch value := value.(type) {
		case string:
			add(value)
		case []any:
			for _, element := range value {
				walk(element)
			}
		case map[string]any:
			for _, element := range value {
				walk(element)
			}
		}
	}
	var provider any
	_ = json.Unmarshal(c.ProviderRaw, &provider) // it has been loaded
	walk(provider)
	for _, file := range c.files() {
		add(option.FileValue(file))
	}
	return values
}

// forTenant returns the credential of one tenant. The name is one, so that it can
// be put into JSON as it is.
func (c Credential) forTenant(name string) Credential {
	c.ProviderRaw = bytes.ReplaceAll(c.ProviderRaw, []byte(option.Tenant), []byte(name))
	c.TokenCA = valuesForTenant(c.TokenCA, name)
	if cert := c.TokenCert; cert != nil {
		files := valuesForTenant([]string{cert.Certificate, cert.Key}, name)
		c.TokenCert = &TokenCert{Certificate: files[0], Key: files[1]}
	}
	c.MaxTenants = 0
	return c
}

// valuesForTenant returns the values that one tenant has in place of values.
func valuesForTenant(values []string, name string) []string {
	values = slices.Clone(values)
	for i, value := range values {
		values[i] = strings.ReplaceAll(value, option.Tenant, name)
	}
	return values
}

// maxTenants returns how many tenants are live at a time.
func (c *Credential) maxTenants() int {
	if c.MaxTenants == 0 {
		return defaultMaxTenants
	}
	return c.MaxTenants
}

// checkTenants returns an error unless what is kept from clients is the same for all
// tenants. The options of provider have {tenant} in them.
func checkTenants(provider tokenprovider.Provider) error {
	if slices.ContainsFunc(provider.API().CredentialPaths, func(path string) bool { return strings.Contains(path, option.Tenant) }) {
		return fmt.Errorf("%s cannot be in the path of an endpoint on the API's own host, which is kept from clients", option.Tenant)
	}
	return nil
}

// tenantIdentity returns the identity of a tenant's credential. It has the names of
// both in it: what tells tenants apart, or two credentials that have them, may be a
// secret, which an identity does not hold.
func tenantIdentity(grant tokenprovider.Grant, tenant string) string {
	digest := sha256.Sum256([]byte(grant.Identity() + " tenant " + tenant))
	return hex.EncodeToString(digest[:])
}

// loadTemplate returns the provider with {tenant} in its options, and checks it.
func (c *Credential) loadTemplate() (tokenprovider.Provider, error) {
	if c.MaxTenants < 0 {
		return nil, option.Errorf("max_tenants", "must be above zero")
	}
	provider, err := unprovisioned(c.ProviderRaw)
	if err != nil {
		return nil, err
	}
	if v, ok := provider.(caddy.Validator); ok {
		if err := v.Validate(); err != nil {
			return nil, err
		}
	}
	return provider, checkTenants(provider)
}

// setUp returns the provider of the credential of one tenant, ready to be used.
// Unlike those of a config it is not kept by Caddy, so that it is gone with its
// tenant.
func (c *Credential) setUp(ctx caddy.Context) (tokenprovider.Provider, error) {
	provider, err := unprovisioned(c.ProviderRaw)
	if err != nil {
		return nil, err
	}
	if p, ok := provider.(caddy.Provisioner); ok {
		if err := p.Provision(ctx); err != nil {
			return nil, err
		}
	}
	if v, ok := provider.(caddy.Validator); ok {
		if err := v.Validate(); err != nil {
			return nil, err
		}
	}
	return provider, nil
}

// findTenant has the request sent with the token of its tenant, where the
// credential has one for each.
func (c *call) findTenant() (*refusal, error) {
	tenants := c.credential.tenants
	if tenants == nil {
		return nil, nil
	}
	if c.probe {
		return nil, errProbeTenant
	}
	name, err := c.repl.ReplaceOrErr(c.Tenant, true, true) // of several placeholders, none may be empty
	if err != nil || !isTenantName(name) {
		r := *tenantInvalid
		if r.detail = "; " + c.Tenant + " has no value"; err == nil && name != "" { // which could be a secret in the wrong place
			r.detail = "; the value of " + c.Tenant + " cannot be a name"
		}
		return &r, nil
	}
	if c.granted != nil && !c.granted.isFor(name) {
		return tenantNotGranted(c.caller.name, name), nil
	}
	found, err := tenants.get(c.req.Context(), name)
	if errors.Is(err, errTenantUnknown) {
		return tenantUnknown(name, err), nil
	}
	if err == nil {
		c.credential = found
	}
	return nil, err
}

// errProbeTenant is why an active health check of a route with tenants fails.
var errProbeTenant = errors.New("a health check names no tenant, so that there is no token for it; remove health_uri and health_port from the route")

// leftTenant returns the refusal of a request of a tenant whose files are gone by
// now, if err says that, and else nil.
func (c *call) leftTenant(err error) *refusal {
	if c.credential.tenant == "" || !errors.Is(err, option.ErrNoValue) {
		return nil
	}
	c.credential.tenants.forget(c.credential.tenant, c.credential)
	return tenantUnknown(c.credential.tenant, err)
}

// useTenants is use for a credential with tenants. The options of provider have
// {tenant} in them.
func (a *App) useTenants(name string, provider tokenprovider.Provider, options Credential) (*activeCredential, error) {
	grant := provider.Grant()
	identity := grant.Identity()
	a.mu.Lock()
	defer a.mu.Unlock()
	if used, ok := a.inUse[name]; ok {
		if used.identity != identity || !reflect.DeepEqual(used.options, options) {
			return nil, fmt.Errorf("credential %s: the name stands for two credentials; give each its own", name)
		}
		return used, nil
	}
	c := &activeCredential{called: name, identity: identity, options: options, store: a.store, tokenURL: grant.TokenURL}
	if !options.hasTenantFiles() { // what is the same for all has to be right
		if _, err := a.client(c, name); err != nil {
			return nil, err
		}
	}
	var release func() error
	c.metrics, release = acquireMetrics(name, grant.Provider, true)
	a.acquired = append(a.acquired, release)
	lapsed, release := acquireLapsed(name, identity)
	c.tenants = newTenants(a, c, options, grant.Scopes, lapsed)
	c.tenants.base = a.baseName(options, provider)
	a.acquired = append(a.acquired, func() error {
		c.tenants.close()
		return release()
	})
	a.inUse[name] = c
	return c, nil
}

// baseName returns the name of a credential with tenants, whatever the scopes of its
// tokens.
func (a *App) baseName(options Credential, provider tokenprovider.Provider) string {
	for _, name := range slices.Sorted(maps.Keys(a.Credentials)) {
		if reflect.DeepEqual(*a.Credentials[name], options) {
			return name
		}
	}
	return inlineName(options, provider)
}

// isPlaceholders reports whether text has placeholders, and all are whole.
func isPlaceholders(text string) bool {
	return strings.Contains(text, "{") && strings.Count(text, "{") == strings.Count(text, "}")
}

// checkTenant returns an error unless the route and its credential agree on whether
// requests have a tenant.
func (t *Transport) checkTenant(options Credential) error {
	switch {
	case t.Tenant == "" && options.hasTenants():
		return fmt.Errorf("has a value for each %s; say on the route where it comes from, as in tenant {http.request.header.X-Tenant}", option.Tenant)
	case t.Tenant != "" && !options.hasTenants():
		return option.Errorf("tenant", "the credential has no %s in it, so all requests would have the same", option.Tenant)
	case strings.Contains(t.Tenant, option.Tenant):
		return option.Errorf("tenant", "%s is what it gives a value to; say where that comes from, as in {http.request.header.X-Tenant}", option.Tenant)
	case t.Tenant != "" && !isPlaceholders(t.Tenant) && !isTenantName(t.Tenant):
		return option.Errorf("tenant", "%q is neither a placeholder nor the name of a tenant", t.Tenant)
	}
	for _, grant := range t.Grants {
		if t.Tenant == "" && grant.Tenants != nil {
			return fmt.Errorf("%s: tenants: the route has no option tenant", &grant)
		}
	}
	return nil
}
