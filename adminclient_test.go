package egress

import (
	"errors"
	"strings"
	"testing"
)

// What the admin API says may come from an authorization server, by way of an error.
func TestErrorsOfTheAdminAPIAreForTerminals(t *testing.T) {
	err := adminRequestError(errors.New(`caddy responded with error: HTTP 502: {"error":"refresh: certificate of \u001b[2Jevil"}`))
	if got := err.Error(); strings.ContainsRune(got, '\x1b') || !strings.Contains(got, "[2Jevil") || strings.Contains(got, "HTTP") {
		t.Errorf("got %q", got)
	}
}
