package e2e_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
	"github.com/caddy-egress/caddy-egress/tokenstore"
)

// entryKey returns where the token of a credential is in the storage.
func (f *fleet) entryKey(credential string) string {
	return "egress/tokens/" + f.issuer.Identity(credential)
}

// loadEntry returns what the storage has of a credential.
func (f *fleet) loadEntry(credential string) []byte {
	f.t.Helper()
	entry, err := f.storage.Load(f.t.Context(), f.entryKey(credential))
	if err != nil {
		f.t.Fatal(err)
	}
	return entry
}

// storeEntry puts an entry into the storage.
func (f *fleet) storeEntry(credential string, entry []byte) {
	f.t.Helper()
	if err := f.storage.Store(f.t.Context(), f.entryKey(credential), entry); err != nil {
		f.t.Fatal(err)
	}
}

// sealEntry returns the entry that an instance with that secret would store, at that
// time by its clock, of a token that was never issued.
func (f *fleet) sealEntry(credential, secret string, at time.Time) []byte {
	f.t.Helper()
	scratch := egresstest.NewSharedFiles(f.t)
	store := tokenstore.New(tokenstore.Options{Storage: scratch.Storage, Name: "scratch", Logger: zap.NewNop()})
	identity := f.issuer.Identity(credential)
	err := store.Credential(credential, identity).Store(f.t.Context(), []tokenprovider.Secret{tokenprovider.NewSecret(secret)},
		tokensource.SharedToken{Token: tokenprovider.Token{
			Value: tokenprovider.NewSecret(egresstest.TokenPrefix + "never-issued"), Issued: at, Expires: at.Add(f.lifetime),
		}})
	if err != nil {
		f.t.Fatal(err)
	}
	entry, err := scratch.Load(f.t.Context(), "egress/tokens/"+identity)
	if err != nil {
		f.t.Fatal(err)
	}
	return entry
}

// changed returns an entry with one of its members changed.
func changed(t *testing.T, entry []byte, member string, change func(any) any) []byte {
	t.Helper()
	var members map[string]any
	if err := json.Unmarshal(entry, &members); err != nil {
		t.Fatal(err)
	}
	before, ok := members[member]
	if !ok {
		t.Fatalf("%s has no %s", entry, member)
	}
	members[member] = change(before)
	entry, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	return entry
}

// flipped is a change of one bit.
func flipped(value any) any {
	raw, _ := base64.StdEncoding.DecodeString(value.(string))
	raw[len(raw)/2] ^= 1
	return base64.StdEncoding.EncodeToString(raw)
}

// badEntry is what is wrong with the entry of a credential.
type badEntry struct {
	make   func(f *fleet, credential string, good []byte) []byte
	silent bool // nobody has to be warned
}

// badEntries are those that no token is taken from, by the name of the credential.
var badEntries = map[string]badEntry{
	"tampered": {make: func(f *fleet, _ string, good []byte) []byte { return changed(f.t, good, "sealed", flipped) }},
	"nonce":    {make: func(f *fleet, _ string, good []byte) []byte { return changed(f.t, good, "nonce", flipped) }},
	"extended": {make: func(f *fleet, _ string, good []byte) []byte {
		return changed(f.t, good, "expires", func(any) any { return time.Now().Add(time.Hour).UTC().Truncate(time.Second) })
	}},
	"truncated": {make: func(_ *fleet, _ string, good []byte) []byte { return good[:len(good)/2] }},
	"empty":     {make: func(*fleet, string, []byte) []byte { return nil }},
	"huge":      {make: func(_ *fleet, _ string, good []byte) []byte { return append(good, bytes.Repeat([]byte(" "), 1<<20)...) }},
	"swapped-a": {make: func(f *fleet, _ string, _ []byte) []byte {
		return f.sealEntry("swapped-b", egresstest.Secret, time.Now())
	}},
	"swapped-b": {make: func(f *fleet, _ string, _ []byte) []byte {
		return f.sealEntry("swapped-a", egresstest.Secret, time.Now())
	}},
	"foreign": {make: func(f *fleet, credential string, _ []byte) []byte {
		return f.sealEntry(credential, "another secret", time.Now())
	}},
	"ahead": {make: func(f *fleet, credential string, _ []byte) []byte {
		return f.sealEntry(credential, egresstest.Secret, time.Now().Add(5*time.Minute))
	}},
	"behind": {silent: true, make: func(f *fleet, credential string, _ []byte) []byte {
		return f.sealEntry(credential, egresstest.Secret, time.Now().Add(-5*time.Minute))
	}},
	"newer": {silent: true, make: func(f *fleet, _ string, good []byte) []byte {
		return changed(f.t, good, "format", func(any) any { return 2 })
	}},
	"much-newer": {silent: true, make: func(*fleet, string, []byte) []byte {
		return []byte(`{"format":7,"expires":{"at":1},"sealed":[1,2],"nonce":null}`)
	}},
}

// An entry that is not what it should be costs a warning. No token is taken from it;
// the next one that is obtained takes its place.
func TestFleetDistrustsEntries(t *testing.T) {
	onEachStorage(t, func(t *testing.T, storage *egresstest.SharedStorage) {
		lifetime := inForm(9*time.Second, 12*time.Second)
		names := slices.Sorted(maps.Keys(badEntries))
		f := newFleet(t, 2, lifetime, storage)
		for _, g := range f.gateways {
			g.Configure(f.config(names...))
		}
		start := time.Now()
		f.start()
		var traffics []*egresstest.Traffic
		for _, name := range names {
			traffics = append(traffics, egresstest.StartTraffic(t, 4*fleetTraffic, "/"+name+"/v1/x", f.gateways...))
		}

		f.spoilEntries(names, f.gateways...)
		f.pass(time.Duration(inForm(1, 2)) * lifetime)
		for _, traffic := range traffics {
			f.checkTraffic(traffic.Stop())
		}
		for _, name := range names {
			f.checkRefreshes(name, f.issuer.Requests(name), start)
		}
		f.checkEntries(names, 1)

		// nor is one taken where nothing else is stored
		before := make(map[string]int)
		for _, g := range f.gateways {
			g.Stop()
		}
		for _, name := range names {
			before[name] = len(f.issuer.Requests(name))
		}
		f.spoilEntries(names)
		f.start()
		for _, name := range names {
			for _, g := range f.gateways {
				g.Get("/" + name + "/v1/x")
			}
			if n := len(f.issuer.Requests(name)) - before[name]; n != 1 {
				f.late("%s: %d token requests after a restart, want 1", name, n)
			}
		}
		f.checkEntries(names, 2)
	})
}

// spoilEntries puts bad entries in the place of good ones. Those of gateways that run
// are spoilt between refreshes: in the middle of one, the good entry may have been read.
func (f *fleet) spoilEntries(names []string, running ...*egresstest.Process) {
	f.t.Helper()
	for _, name := range names {
		for _, g := range running {
			egresstest.Eventually(f.t, "the time between refreshes of "+name, func() bool {
				status := g.Status(name)
				return status.State == "fresh" && time.Until(status.NextAttempt) > time.Second && f.storedToken(name) == f.lastToken(name)
			})
		}
		f.storeEntry(name, badEntries[name].make(f, name, f.loadEntry(name)))
	}
}

// checkEntries checks that the entries are good again, and that each was warned of
// up to that many times by each gateway, and by one at least.
func (f *fleet) checkEntries(names []string, most int) {
	f.t.Helper()
	warned := make(map[string]int) // by credential
	for _, g := range f.gateways {
		byCredential := make(map[string]int)
		for _, line := range g.LogLines(unusableSharing) {
			byCredential[line["credential"].(string)]++
		}
		for name, n := range byCredential {
			warned[name] += n
			if badEntries[name].silent || n > most {
				f.t.Errorf("%s has warned of %s %d times", g.Name, name, n)
			}
		}
	}
	for _, name := range names {
		if !badEntries[name].silent && warned[name] < most {
			f.late("%s was warned of %d times, want %d at least", name, warned[name], most)
		}
		egresstest.Eventually(f.t, "the last token of "+name+" in its entry", func() bool {
			stored := f.storedToken(name)
			return stored == f.lastToken(name) || raceDetector && slices.Contains(f.issuer.Tokens(), stored) // see late
		})
	}
	f.checkLogs(map[string]int{sharingFails: 0})
}

// storedToken returns the token in the entry of a credential, or "".
func (f *fleet) storedToken(credential string) string {
	f.t.Helper()
	store := tokenstore.New(tokenstore.Options{Storage: f.storage, Name: "storage", Logger: zap.NewNop()})
	secrets := [][]tokenprovider.Secret{{tokenprovider.NewSecret(egresstest.Secret)}}
	stored, err := store.Credential(credential, f.issuer.Identity(credential)).Load(f.t.Context(), secrets)
	if err != nil || stored == nil {
		return ""
	}
	return stored.Value.Reveal()
}

// lastToken returns the token of a credential that was issued last.
func (f *fleet) lastToken(credential string) string {
	f.t.Helper()
	requests := f.issuer.Requests(credential)
	if len(requests) == 0 {
		f.t.Fatalf("no token of %s was issued", credential)
	}
	return requests[len(requests)-1].Token
}

// checkDump checks that nobody who reads the storage learns a token or the secret.
func (f *fleet) checkDump() {
	f.t.Helper()
	dump := f.storage.Dump()
	if !strings.Contains(dump, f.issuer.Identity(fleetCredential)) {
		f.t.Fatalf("the storage does not have an entry, which says nothing of what it would show: %q", dump)
	}
	for _, value := range append(f.issuer.Tokens(), egresstest.Secret) {
		if shows(dump, value) {
			f.t.Errorf("the storage shows %q", value)
		}
	}
}

// shows reports whether text holds value, as it is or encoded.
func shows(text, value string) bool {
	all := []string{value, hex.EncodeToString([]byte(value)), fmt.Sprintf("%q", value)}
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for shift := range 3 { // whatever is before it
			encoded := encoding.EncodeToString([]byte("   "[:shift] + value))
			all = append(all, encoded[shift+1:len(encoded)-1])
		}
	}
	return slices.ContainsFunc(all, func(s string) bool { return strings.Contains(strings.ToLower(text), strings.ToLower(s)) })
}

// What looks for tokens in a storage finds them there.
func TestFleetDumpsShowPlainTokens(t *testing.T) {
	storage := egresstest.NewSharedFiles(t)
	token := egresstest.Token(1)
	for _, content := range []string{
		`{"token":"` + token + `"}`,
		`{"sealed":"` + base64.StdEncoding.EncodeToString([]byte(`{"token":"`+token+`"}`)) + `"}`,
		`{"sealed":"` + base64.URLEncoding.EncodeToString([]byte(`{"a_token":"`+token+`"}`)) + `"}`,
		`{"sealed":"` + hex.EncodeToString([]byte(`{"token":"`+token+`"}`)) + `"}`,
	} {
		if err := storage.Store(t.Context(), "egress/tokens/x", []byte(content)); err != nil {
			t.Fatal(err)
		}
		if !shows(storage.Dump(), token) {
			t.Errorf("a token is not found in %q", storage.Dump())
		}
	}
	if shows(storage.Dump(), egresstest.Token(2)) {
		t.Error("a token is found that is not there")
	}
}

// What nobody needs any more is deleted, and nothing else.
func TestFleetCleansUp(t *testing.T) {
	onEachStorage(t, func(t *testing.T, storage *egresstest.SharedStorage) {
		f := newFleet(t, 1, 10*time.Second, storage)
		ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
		for name, at := range map[string]time.Time{"old": ago(2 * time.Hour), "recent": ago(30 * time.Minute), "live": ago(0), fleetCredential: ago(3 * time.Hour)} {
			f.storeEntry(name, f.sealEntry(name, "of a credential that was removed", at))
		}
		f.storeEntry("later", changed(t, f.loadEntry("old"), "format", func(any) any { return 2 }))
		others := []string{"egress/other", "certificates/x", "egress/tokens2/" + f.issuer.Identity("old")}
		for _, key := range others {
			if err := storage.Store(t.Context(), key, f.loadEntry("old")); err != nil {
				t.Fatal(err)
			}
		}

		f.start()
		egresstest.Eventually(t, "the old entry to be deleted", func() bool { return !storage.Exists(t.Context(), f.entryKey("old")) })
		f.gateways[0].Get(fleetRequest)
		f.gateways[0].Stop() // whatever else it would delete is gone by now
		for _, name := range []string{"recent", "live", "later", fleetCredential} {
			others = append(others, f.entryKey(name))
		}
		for _, key := range others {
			if !storage.Exists(t.Context(), key) {
				t.Errorf("%s is deleted", key)
			}
		}
		f.checkLogs(map[string]int{sharingFails: 0, unusableSharing: 1}) // of the credential that is in use
	})
}
