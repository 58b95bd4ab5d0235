package egress

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// Tokens that have expired are forgotten, however many or few come after them.
func TestSentTokensAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s tokensSent
		send := func(value string, lifetime time.Duration) {
			s.add(&tokensource.Token{Token: tokenprovider.Token{Value: tokenprovider.NewSecret(value), Expires: time.Now().Add(lifetime)}})
		}
		for i := range 1000 {
			send(fmt.Sprint("short ", i), 20*time.Second)
		}
		send("long", time.Hour)
		if got := len(s.expires); got != 1001 || !s.has("short 1") {
			t.Errorf("%d tokens are known, want 1001", got)
		}
		time.Sleep(pruneEvery)
		send("another", time.Hour)
		if got := len(s.expires); got != 2 || s.has("short 1") || !s.has("long") || !s.has("another") {
			t.Errorf("%d tokens are known, want those that live", got)
		}
	})
}
