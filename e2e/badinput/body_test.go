package badinput

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
)

// raw answers with bytes that no HTTP library would send.
func raw(w http.ResponseWriter, parts ...string) {
	connection, buffered, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	defer connection.Close()
	for _, part := range parts {
		_, _ = buffered.WriteString(part)
	}
	_ = buffered.Flush()
}

// Bodies that are not what their headers say, of each object of an image.
func TestBodies(t *testing.T) {
	head := "HTTP/1.1 200 OK\r\n"
	length := func(n int) string { return fmt.Sprintf("Content-Length: %d\r\n\r\n", n) }
	lies := []struct {
		name  string
		send  func(w http.ResponseWriter, body string)
		codes []codes.Code
	}{
		{"breaks off", func(w http.ResponseWriter, body string) { raw(w, head, length(len(body)), body[:len(body)/2]) }, unserved},
		{"is shorter than announced", func(w http.ResponseWriter, body string) { raw(w, head, length(len(body)+1), body) }, []codes.Code{codes.Unknown, codes.OK, codes.DataLoss}},
		{"is longer than announced", func(w http.ResponseWriter, body string) { raw(w, head, length(len(body)), body, "garbage") }, welcome},
		{"is announced shorter", func(w http.ResponseWriter, body string) { raw(w, head, length(len(body)-1), body) }, []codes.Code{codes.DataLoss, codes.InvalidArgument}},
		{"is announced twice", func(w http.ResponseWriter, body string) {
			raw(w, head, fmt.Sprintf("Content-Length: %d\r\n", len(body)), length(1), body)
		}, unserved},
		{"has a negative length", func(w http.ResponseWriter, body string) { raw(w, head, length(-1), body) }, unserved},
		{"has a length of words", func(w http.ResponseWriter, body string) { raw(w, head, "Content-Length: long\r\n\r\n", body) }, unserved},
		{"has no length", func(w http.ResponseWriter, body string) { raw(w, head, "\r\n", body) }, welcome},
		{"comes in broken chunks", func(w http.ResponseWriter, body string) {
			raw(w, head, "Transfer-Encoding: chunked\r\n\r\nzz\r\n", body)
		}, unserved},
		{"comes in a chunk without end", func(w http.ResponseWriter, body string) {
			raw(w, head, "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", body)
		}, unserved},
		{"comes behind a flood of headers", func(w http.ResponseWriter, body string) {
			raw(w, head, strings.Repeat("X-Flood: x\r\n", 20_000), length(len(body)), body)
		}, unserved},
		{"comes behind a header of 1 MiB", func(w http.ResponseWriter, body string) {
			raw(w, head, "X-Long: ", repeated(1<<20), "\r\n", length(len(body)), body)
		}, unserved},
		{"is said to be compressed", func(w http.ResponseWriter, body string) {
			raw(w, head, "Content-Encoding: gzip\r\n", length(len(body)), body)
		}, welcome},
		{"is a part nobody asked for", func(w http.ResponseWriter, body string) {
			raw(w, "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-9/10\r\n", length(len(body)), body)
		}, []codes.Code{codes.Unknown, codes.OK}},
		{"is none", func(w http.ResponseWriter, _ string) { raw(w, "HTTP/1.1 204 No Content\r\n\r\n") }, []codes.Code{codes.DataLoss, codes.InvalidArgument}},
		{"is no HTTP", func(w http.ResponseWriter, _ string) { raw(w, "SSH-2.0-OpenSSH_9.2\r\n") }, unserved},
		{"has a status of words", func(w http.ResponseWriter, _ string) { raw(w, "HTTP/1.1 fine\r\n\r\n") }, unserved},
		{"is gone", func(w http.ResponseWriter, _ string) { w.WriteHeader(http.StatusNotFound) }, []codes.Code{codes.NotFound}},
		{"is an error of 64 MiB", func(w http.ResponseWriter, _ string) {
			w.WriteHeader(http.StatusTeapot)
			_, _ = w.Write(bytes.Repeat([]byte("x"), 64<<20))
		}, unserved},
	}
	var rows []row
	for object, is := range objects {
		for _, lie := range lies {
			rows = append(rows, pullFrom("whose "+object+" "+lie.name, func() *evil { return newSecure(1, nil) }, nil, func(_ *scene, e *evil) {
				plainImage(e)
				e.behave = func(w http.ResponseWriter, r *http.Request) bool {
					if !is(e, r.URL.Path) {
						return false
					}
					body := e.manifest
					if _, digest, ok := strings.Cut(r.URL.Path, "/blobs/"); ok {
						body = e.blobs[digest]
					}
					lie.send(w, string(body))
					return true
				}
			}, lie.codes))
		}
	}
	run(t, rows)
}

// Transfers that break off and what comes when they are taken up again.
func TestResumedTransfers(t *testing.T) {
	noise := layer(directory("bin"), file("bin/sh", strings.Repeat("some text that is long enough", 10_000)))
	resumed := func(name string, again func(w http.ResponseWriter, rest, whole []byte, from int), codes []codes.Code, words ...string) row {
		return pullFrom("whose layer breaks off, and then "+name, func() *evil { return newSecure(1, nil) }, nil, func(_ *scene, e *evil) {
			e.serve([][]byte{noise}, nil)
			e.behave = func(w http.ResponseWriter, r *http.Request) bool {
				_, digest, _ := strings.Cut(r.URL.Path, "/blobs/")
				if !objects["layer"](e, r.URL.Path) {
					return false
				}
				whole := e.blobs[digest]
				var from int
				if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err != nil {
					raw(w, "HTTP/1.1 200 OK\r\n", fmt.Sprintf("Content-Length: %d\r\n\r\n", len(whole)), string(whole[:len(whole)/2]))
					return true
				}
				again(w, whole[from:], whole, from)
				return true
			}
		}, codes, words...)
	}
	part := func(w http.ResponseWriter, from int, whole, body []byte) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(whole)-1, len(whole)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(body)
	}
	run(t, []row{
		resumed("goes on", func(w http.ResponseWriter, rest, whole []byte, from int) { part(w, from, whole, rest) }, welcome),
		resumed("comes as a whole", func(w http.ResponseWriter, _, whole []byte, _ int) { _, _ = w.Write(whole) }, welcome),
		resumed("goes on elsewhere", func(w http.ResponseWriter, rest, whole []byte, from int) { part(w, from+7, whole, rest[7:]) }, unserved, "RegistryUnavailable"),
		resumed("goes on with other bytes", func(w http.ResponseWriter, rest, whole []byte, from int) {
			other := slices.Clone(rest)
			other[len(other)/2] ^= 1
			part(w, from, whole, other)
		}, damaged, "sha256:"),
		resumed("is longer", func(w http.ResponseWriter, rest, whole []byte, from int) {
			part(w, from, whole, append(slices.Clone(rest), 'x'))
		}, damaged),
		resumed("is at its end", func(w http.ResponseWriter, _, _ []byte, _ int) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		}, unserved, "416"),
		resumed("is forbidden", func(w http.ResponseWriter, _, _ []byte, _ int) { w.WriteHeader(http.StatusForbidden) }, forbidden),
		resumed("is gone", func(w http.ResponseWriter, _, _ []byte, _ int) { w.WriteHeader(http.StatusNotFound) }, []codes.Code{codes.NotFound}),
	})
}
