//go:build !linux

package e2e_test

import "testing"

type opened struct{}

// watchOpens skips the test: what is opened can be watched on Linux only.
func watchOpens(t testing.TB, _ ...string) *opened {
	t.Skip("what is opened can be watched on Linux only")
	return nil
}

func (*opened) all() map[string]int { return nil }
