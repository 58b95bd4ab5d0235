package egress

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/tokensource"
)

// Credentials in use outlive a config: what is pooled here survives reloads.
var (
	// states are the tokens in use, by identity of the credential. Its secrets are
	// not part of that: a token stays in use while another secret has not brought
	// one.
	states = caddy.NewUsagePool()

	// metricsPool has what is measured, by name of the credential and provider.
	metricsPool = caddy.NewUsagePool()

	// rateLimits are what APIs have said of their rate limits, by identity of the
	// credential.
	rateLimits = caddy.NewUsagePool()

	// quotas are what is left of APIs' quotas, by identity of the credential without
	// its scopes.
	quotas = caddy.NewUsagePool()

	// endpoints bound the token requests of all credentials to one token
	// endpoint, by its URL.
	endpoints = caddy.NewUsagePool()
)

// acquireState returns the state of a credential, and what gives it up.
func acquireState(name, identity string) (*tokensource.State, func() error) {
	pooled, _ := states.LoadOrStore(identity, pooledState{tokensource.NewState(), name})
	return pooled.(pooledState).State, func() error {
		_, err := states.Delete(identity)
		return err
	}
}

// acquireMetrics returns what is measured of a credential, and what gives it up.
func acquireMetrics(name, provider string, ofTenants bool) (*credentialMetrics, func() error) {
	key := fmt.Sprint(name, " ", provider, " ", ofTenants)
	pooled, _ := metricsPool.LoadOrStore(key, newCredentialMetrics(name, provider, ofTenants))
	return pooled.(*credentialMetrics), func() error {
		_, err := metricsPool.Delete(key)
		return err
	}
}

// acquireRateLimit returns what is known of the rate limit of a credential, and
// what gives it up.
func acquireRateLimit(identity string) (*rateLimit, func() error) {
	pooled, _ := rateLimits.LoadOrStore(identity, newRateLimit())
	return pooled.(*rateLimit), func() error {
		_, err := rateLimits.Delete(identity)
		return err
	}
}

// acquireQuota returns what is left of the quota of a client of an API, and what
// gives it up.
func acquireQuota(identity string) (*quota, func() error) {
	pooled, _ := quotas.LoadOrStore(identity, new(quota))
	return pooled.(*quota), func() error {
		_, err := quotas.Delete(identity)
		return err
	}
}

// acquireEndpoint returns what bounds the token requests to tokenURL, and what
// gives it up.
func acquireEndpoint(tokenURL string) (*tokensource.Endpoint, func() error) {
	pooled, _ := endpoints.LoadOrStore(tokenURL, tokensource.NewEndpoint())
	return pooled.(*tokensource.Endpoint), func() error {
		_, err := endpoints.Delete(tokenURL)
		return err
	}
}

// pooledState is a state that is retired with the last config that uses it.
type pooledState struct {
	*tokensource.State
	name string // of the credential that it was made for
}

// How long the end of a credential waits for requests that carry its token, and
// then for the token to be revoked.
const (
	retireTimeout     = 10 * time.Second
	retireTimeoutExit = 2 * time.Second
)

// Destruct implements caddy.Destructor. A reload does not wait for the token to
// be revoked; the end of the process does, for a while.
func (s pooledState) Destruct() error {
	if caddy.Exiting() {
		s.retire(retireTimeoutExit)
	} else {
		go s.retire(retireTimeout)
	}
	return nil
}

// retiring has a value for each credential that ends. Thousands may end at a time, and
// each may make a request to have its token revoked.
var retiring = make(chan struct{}, 64)

func (s pooledState) retire(timeout time.Duration) {
	place := time.NewTimer(timeout)
	defer place.Stop()
	select {
	case retiring <- struct{}{}:
		defer func() { <-retiring }()
	case <-place.C: // what is left of it expires
		return
	}
	if err := s.Retire(timeout, timeout); err != nil {
		// the config's logger is closed by now
		caddy.Log().Named("egress").Warn("could not revoke the token; it is left to expire",
			zap.String("credential", s.name), zap.Error(err))
	}
}
