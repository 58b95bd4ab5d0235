// Package e2e_test tests the whole gateway, from Caddyfile to sockets, by
// subject. The harness is internal/egresstest.
package e2e_test

import (
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

func TestMain(m *testing.M) { egresstest.Main(m) }
