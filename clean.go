package egress

import (
	"io"
	"net/http"
	"slices"
	"strings"
)

// cleanAnswer makes an answer of an API fit for clients. What it says in the
// gateway's name and of web pages is dropped, the tokens that it was sent are
// redacted, in trailers, too, and browsers are told to run nothing of it: under
// the gateway's own origin it could use every route there is.
//
// The storage is for what that takes.
func cleanAnswer(resp *http.Response, tokens sentTokens, storage *answerStorage) {
	if resp.StatusCode == http.StatusSwitchingProtocols {
		cleanHeader(resp.Header, tokens)
		return
	}
	dropConnection(resp.Header)
	cleanHeader(resp.Header, tokens)
	cleanHeader(resp.Trailer, tokens)        // the names that are announced
	resp.Status = tokens.redact(resp.Status) // there is a placeholder for it
	makeInert(resp, storage)
	if mayHaveTrailers(resp) {
		storage.body = cleanedBody{ReadCloser: resp.Body, resp: resp, tokens: tokens}
		resp.Body = &storage.body
	}
}

// answerStorage is what an answer needs of memory, allocated with its request.
type answerStorage struct {
	nosniff [1]string
	body    cleanedBody
}

// cleanHeader drops and redacts what must not be in the header, the trailers or
// the informational header of an answer.
func cleanHeader(header http.Header, tokens sentTokens) {
	for name, values := range header {
		switch {
		case strings.HasPrefix(name, "Access-Control-"), tokens.named(name):
			// A browser that was given an answer for its own sake would show it
			// to a page later, from its cache.
			delete(header, name)
			continue
		case name == "Proxy-Status":
			if values = othersProxyStatus(values); values == nil {
				delete(header, name)
				continue
			}
			header[name] = values
		}
		for i, value := range values {
			values[i] = tokens.redact(value)
		}
	}
}

// dropConnection removes what is between the API and the gateway only, as
// reverse_proxy would later: an API must not name there what is added here.
func dropConnection(header http.Header) {
	connection, ok := header["Connection"]
	if !ok {
		return
	}
	delete(header, "Connection")
	if len(connection) == 1 && (connection[0] == "keep-alive" || connection[0] == "close") {
		delete(header, "Keep-Alive")
		return
	}
	for _, value := range connection {
		for name := range strings.SplitSeq(value, ",") {
			header.Del(strings.TrimSpace(name))
		}
	}
}

// othersProxyStatus returns the members of a Proxy-Status that are not the
// gateway's own; nil if there are none. What a reader could take for its own
// counts as its own, and so does all of a list that is not well-formed.
func othersProxyStatus(values []string) []string {
	// several lines are one list (RFC 9110 §5.3), and have to be read as one
	members, ok := splitList(strings.Join(values, ", "))
	members = slices.DeleteFunc(members, func(member string) bool {
		name := strings.TrimLeft(strings.ReplaceAll(member, `\`, ""), "\"( \t")
		return len(name) >= len(proxyName) && strings.EqualFold(name[:len(proxyName)], proxyName)
	})
	if !ok || len(members) == 0 {
		return nil
	}
	return []string{strings.Join(members, ", ")}
}

// splitList splits a structured field list (RFC 9651 §3.1) at its commas, but
// not at those inside of strings. It reports whether all strings have an end.
func splitList(value string) (members []string, ok bool) {
	var quoted, escaped bool
	start := 0
	for i := range len(value) {
		switch c := value[i]; {
		case escaped:
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			members = append(members, strings.TrimSpace(value[start:i]))
			start = i + 1
		}
	}
	return append(members, strings.TrimSpace(value[start:])), !quoted
}

// makeInert tells browsers not to guess what an answer is, and not to run it.
func makeInert(resp *http.Response, storage *answerStorage) {
	// Values of its own, not shared: header_down can replace in them.
	storage.nosniff[0] = "nosniff"
	resp.Header["X-Content-Type-Options"] = storage.nosniff[:]
	if isActive(resp) {
		// policies add up, so those of the API may stay
		resp.Header.Add("Content-Security-Policy", "sandbox")
		resp.Header["X-Frame-Options"] = []string{"DENY"}
	}
}

// isActive reports whether a browser could run an answer: whether it is HTML, SVG
// or other XML, or a browser or server in between could take it for that.
func isActive(resp *http.Response) bool {
	types := resp.Header["Content-Type"]
	if len(types) == 1 && types[0] == "application/json" {
		return false
	}
	typed := false
	for _, value := range types {
		for value := range strings.SplitSeq(value, ",") { // as browsers read it
			mediaType, _, _ := strings.Cut(value, ";")
			mediaType = strings.ToLower(strings.TrimSpace(mediaType))
			typed = typed || mediaType != ""
			switch mediaType {
			case "text/html", "text/xsl", "multipart/x-mixed-replace":
				return true
			}
			if strings.HasSuffix(mediaType, "/xml") || strings.HasSuffix(mediaType, "+xml") {
				return true
			}
		}
	}
	// Where the type is left out, Go's server would look for HTML in the body; and
	// the headers of a 304 become those of the answer that a browser has stored.
	return !typed && (resp.ContentLength != 0 || resp.StatusCode == http.StatusNotModified)
}

// mayHaveTrailers reports whether trailers can follow the body of an answer.
func mayHaveTrailers(resp *http.Response) bool {
	if resp.Body == nil || resp.Body == http.NoBody {
		return false
	}
	return resp.ProtoMajor >= 2 || len(resp.TransferEncoding) > 0 || resp.Trailer != nil
}

// cleanedBody is the body of an answer, whose trailers are cleaned when they are
// there: at its end.
type cleanedBody struct {
	io.ReadCloser
	resp   *http.Response
	tokens sentTokens
}

// Read implements io.Reader.
func (b *cleanedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		cleanHeader(b.resp.Trailer, b.tokens)
	}
	return n, err
}

// Close implements io.Closer.
func (b *cleanedBody) Close() error {
	err := b.ReadCloser.Close()
	cleanHeader(b.resp.Trailer, b.tokens)
	return err
}
