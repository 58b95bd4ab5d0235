package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// tab is a tab of a browser of its own, which a test drives with the DevTools
// protocol over pipes.
type tab struct {
	t       *testing.T
	to      io.Writer
	session string

	mu         sync.Mutex
	sent       int
	waiting    map[int]chan message
	complaints []string // what the browser has said of pages, such as that their policy is violated
}

// message is one of the DevTools protocol.
type message struct {
	ID      int             `json:"id,omitempty"`
	Session string          `json:"sessionId,omitempty"`
	Method  string          `json:"method,omitempty"`
	Params  any             `json:"params,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   json.RawMessage `json:"error,omitempty"`
}

// newTab starts a browser, which ends with the test.
func newTab(t *testing.T, browser string) *tab {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("pipes cannot be handed to a browser on Windows")
	}
	theirs, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	from, ours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(context.WithoutCancel(t.Context()), browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
		"--user-data-dir="+t.TempDir(), "--remote-debugging-pipe")
	command.ExtraFiles = []*os.File{theirs, ours}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	ours.Close()

	b := &tab{t: t, to: to, waiting: make(map[int]chan message)}
	var wg sync.WaitGroup
	wg.Go(func() { b.listen(from) })
	t.Cleanup(func() {
		b.session = ""
		_, _ = b.try("Browser.close", nil) // it may end before it answers
		_ = command.Wait()
		to.Close()
		wg.Wait()
		from.Close()
	})

	var target struct{ TargetID string }
	b.result(&target, "Target.createTarget", map[string]any{"url": "about:blank"})
	var attached struct{ SessionID string }
	b.result(&attached, "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true})
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		b.call(domain+".enable", nil)
	}
	return b
}

// listen takes what the browser sends until it ends.
func (b *tab) listen(from io.Reader) {
	lines := bufio.NewReader(from)
	for {
		line, err := lines.ReadBytes(0)
		if err != nil {
			break
		}
		line = bytes.TrimSuffix(line, []byte{0})
		var m message
		if err := json.Unmarshal(line, &m); err != nil {
			b.complain(err.Error())
			continue
		}
		switch m.Method {
		case "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded":
			b.complain(string(line))
		case "":
			b.mu.Lock()
			answer := b.waiting[m.ID]
			delete(b.waiting, m.ID)
			b.mu.Unlock()
			if answer != nil {
				answer <- m
			}
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, answer := range b.waiting {
		close(answer)
	}
	b.waiting = nil
}

func (b *tab) complain(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.complaints = append(b.complaints, what)
}

// complained returns what the browser has complained of since the last time, but for
// complaints that have one of those words.
func (b *tab) complained(but ...string) (all []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, what := range b.complaints {
		if !slices.ContainsFunc(but, func(word string) bool { return strings.Contains(what, word) }) {
			all = append(all, what)
		}
	}
	b.complaints = nil
	return all
}

// try has the browser do something, and returns what comes of it.
func (b *tab) try(method string, params any) (json.RawMessage, error) {
	if params == nil {
		params = struct{}{}
	}
	answer := make(chan message, 1)
	b.mu.Lock()
	b.sent++
	line, err := json.Marshal(message{ID: b.sent, Session: b.session, Method: method, Params: params})
	if err == nil && b.waiting != nil {
		b.waiting[b.sent] = answer
		_, err = b.to.Write(append(line, 0))
	}
	b.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case m, ok := <-answer:
		switch {
		case !ok:
			return nil, errors.New("the browser has ended")
		case m.Error != nil:
			return nil, errors.New(string(m.Error))
		}
		return m.Result, nil
	case <-time.After(time.Minute):
		return nil, errors.New("the browser does not answer")
	}
}

// call is [tab.try] for what has to succeed.
func (b *tab) call(method string, params any) json.RawMessage {
	b.t.Helper()
	result, err := b.try(method, params)
	if err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
	return result
}

func (b *tab) result(result any, method string, params any) {
	b.t.Helper()
	if err := json.Unmarshal(b.call(method, params), result); err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
}

// open opens a page, and waits until it is loaded.
func (b *tab) open(address string) {
	b.t.Helper()
	b.call("Page.navigate", map[string]any{"url": address})
	b.waitFor(fmt.Sprintf("location.href === %q && document.readyState === 'complete'", address))
}

// tryEval returns the value of an expression in the page, as text. While another page
// is being opened, there may be none.
func (b *tab) tryEval(expression string) (string, error) {
	result, err := b.try("Runtime.evaluate", map[string]any{"expression": expression, "awaitPromise": true, "returnByValue": true})
	if err != nil {
		return "", err
	}
	var evaluated struct {
		Result    struct{ Value any }
		Exception json.RawMessage `json:"exceptionDetails"`
	}
	if err := json.Unmarshal(result, &evaluated); err != nil {
		return "", err
	}
	if evaluated.Exception != nil {
		return "", errors.New(string(evaluated.Exception))
	}
	return fmt.Sprint(evaluated.Result.Value), nil
}

// eval is [tab.tryEval] where a page is open.
func (b *tab) eval(expression string) string {
	b.t.Helper()
	value, err := b.tryEval(expression)
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return value
}

// waitFor waits until an expression in the page is true.
func (b *tab) waitFor(expression string) {
	b.t.Helper()
	egresstest.Eventually(b.t, expression, func() bool {
		value, err := b.tryEval(expression)
		return err == nil && value == "true"
	})
}

// press presses and releases a key: Tab, Enter or a space.
func (b *tab) press(key string) {
	b.t.Helper()
	code := map[string]int{"Tab": 9, "Enter": 13, " ": 32}[key]
	params := map[string]any{"type": "keyDown", "key": key, "code": map[string]string{" ": "Space"}[key], "windowsVirtualKeyCode": code}
	if text := map[string]string{"Enter": "\r", " ": " "}[key]; text != "" {
		params["text"] = text
	}
	b.call("Input.dispatchKeyEvent", params)
	b.call("Input.dispatchKeyEvent", map[string]any{"type": "keyUp", "key": key, "windowsVirtualKeyCode": code})
}

// size has the page in a window of that size.
func (b *tab) size(width, height int) {
	b.t.Helper()
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false})
}

// prefer sets what its user prefers, such as prefers-color-scheme.
func (b *tab) prefer(feature, value string) {
	b.t.Helper()
	b.call("Emulation.setEmulatedMedia", map[string]any{"features": []any{map[string]string{"name": feature, "value": value}}})
}

// screenshot returns a picture of the page, as PNG.
func (b *tab) screenshot() []byte {
	b.t.Helper()
	var shot struct{ Data string }
	b.result(&shot, "Page.captureScreenshot", map[string]any{"format": "png"})
	picture, err := base64.StdEncoding.DecodeString(shot.Data)
	if err != nil {
		b.t.Fatal(err)
	}
	return picture
}
