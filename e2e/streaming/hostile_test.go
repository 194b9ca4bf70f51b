package streaming

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

// memory is the daemon's resident memory in MiB.
func memory(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", lab.Node().Pid()))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	var kib int
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib / 1024
}

const (
	toSPDY      = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n"
	toWebSocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n"
)

// raw asks for a command and begins to speak to its URL; the answer's head is read.
func raw(t *testing.T, c *lab.Container, script, headers string) (net.Conn, string) {
	t.Helper()
	address, err := url.Parse(execURL(t, &runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"sh", "-c", script}, Stdin: true, Stdout: true, Stderr: true}))
	if err != nil {
		t.Fatal(err)
	}
	connection, err := net.Dial("tcp", address.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	_, _ = fmt.Fprintf(connection, "POST %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", address.Path, address.Host, headers)
	var head []byte
	for one := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); head = append(head, one[0]) {
		if _, err := io.ReadFull(connection, one); err != nil {
			t.Fatalf("after %q: %v", head, err)
		}
	}
	return connection, string(head)
}

// cutOff wants the server to end a connection soon, and returns what it said before.
func cutOff(t *testing.T, connection net.Conn) []byte {
	t.Helper()
	_ = connection.SetReadDeadline(time.Now().Add(15 * time.Second))
	said, err := io.ReadAll(connection)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection was not ended")
	}
	return said
}

func control(kind uint16, payload []byte) []byte {
	frame := binary.BigEndian.AppendUint16([]byte{0x80, 3}, kind)
	return append(binary.BigEndian.AppendUint32(frame, uint32(len(payload))), payload...)
}

// bomb is a stream whose header of a few KiB unpacks to 64 MiB.
func bomb() []byte {
	var packed bytes.Buffer
	writer, _ := zlib.NewWriterLevel(&packed, zlib.BestCompression)
	_, _ = writer.Write([]byte{0, 0, 0, 1, 0, 0, 0, 1, 'a', 4, 0, 0, 0})
	_, _ = writer.Write(make([]byte, 8<<20))
	_ = writer.Flush()
	return control(1, append([]byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0}, packed.Bytes()...))
}

func TestClientsThatMisbehave(t *testing.T) {
	c := pod(t).Run("main", sleeper)
	run(t, protocols["spdy"], c, "true", nil)
	open, resident := descriptors(t), memory(t)
	t.Run("spdy", func(t *testing.T) {
		for what, bytes := range map[string][]byte{
			"garbage":                  []byte(strings.Repeat("\xde\xad\xbe\xef", 1000)),
			"another version":          {0x80, 2, 0, 1, 0, 0, 0, 0},
			"a count of settings lies": control(4, []byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 7, 0, 0, 0, 1}),
			"16 MiB of control frame":  {0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff},
			"a header bomb":            bomb(),
			"no header block":          control(1, append([]byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0}, "no zlib"...)),
			"stream 0":                 control(1, make([]byte, 20)),
		} {
			t.Run(what, func(t *testing.T) {
				connection, head := raw(t, c, "exec sleep 4323", toSPDY)
				if !strings.HasPrefix(head, "HTTP/1.1 101 ") {
					t.Fatalf("no upgrade: %q", head)
				}
				_, _ = connection.Write(bytes)
				cutOff(t, connection)
			})
		}
	})
	t.Run("websocket", func(t *testing.T) {
		for what, bytes := range map[string][]byte{
			"no mask":              {0x82, 1, 0},
			"a length of 2^63":     {0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4},
			"2 MiB in one":         {0x82, 0xff, 0, 0, 0, 0, 0, 0x20, 0, 0, 1, 2, 3, 4},
			"a fragmented ping":    {0x09, 0x80, 1, 2, 3, 4},
			"an unknown opcode":    {0x83, 0x80, 1, 2, 3, 4},
			"an unknown channel":   {0x82, 0x81, 0, 0, 0, 0, 9},
			"a message of nothing": {0x82, 0x80, 0, 0, 0, 0},
		} {
			t.Run(what, func(t *testing.T) {
				connection, head := raw(t, c, "exec sleep 4323", toWebSocket)
				if !strings.HasPrefix(head, "HTTP/1.1 101 ") {
					t.Fatalf("no upgrade: %q", head)
				}
				_, _ = connection.Write(bytes)
				if said := cutOff(t, connection); len(said) < 4 || !hasClose(said) {
					t.Errorf("no close frame in %q", said)
				}
			})
		}
	})
	t.Run("http", func(t *testing.T) {
		if _, head := raw(t, c, "true", toWebSocket+"Origin: http://evil.example\r\n"); !strings.HasPrefix(head, "HTTP/1.1 403 ") {
			t.Errorf("a page of another origin: %q", head)
		}
		if _, head := raw(t, c, "true", "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9.channel.k8s.io\r\n"); !strings.HasPrefix(head, "HTTP/1.1 403 ") {
			t.Errorf("an unknown protocol: %q", head)
		}
		if _, head := raw(t, c, "true", "X: "+strings.Repeat("x", 20<<10)+"\r\n"); !strings.HasPrefix(head, "HTTP/1.1 400 ") {
			t.Errorf("a long head: %q", head)
		}
	})
	eventually(t, "no command is left", func() bool { return !strings.Contains(c.Sh("ps -o args"), "sleep 4323") })
	eventually(t, "the daemon closed all", func() bool { return descriptors(t) <= open })
	if now := memory(t); now > resident+24 {
		t.Errorf("the daemon grew from %d to %d MiB", resident, now)
	}
}

// hasClose finds a close frame behind other frames of the server.
func hasClose(said []byte) bool {
	for len(said) >= 2 {
		if said[0] == 0x88 {
			return true
		}
		said = said[min(len(said), 2+int(said[1])):]
	}
	return false
}

// Who connects and says nothing is let go, however many they are.
func TestClientsThatSayNothing(t *testing.T) {
	c := pod(t).Run("main", sleeper)
	address, err := url.Parse(execURL(t, &runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"true"}, Stdout: true}))
	if err != nil {
		t.Fatal(err)
	}
	var silent []net.Conn
	for range 50 {
		connection, err := net.Dial("tcp", address.Host)
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, connection)
	}
	for _, connection := range silent {
		cutOff(t, connection)
		_ = connection.Close()
	}
}

// A client that does not read holds its own command up, and nothing else.
func TestClientThatDoesNotRead(t *testing.T) {
	c := pod(t).Run("main", sleeper)
	run(t, protocols["spdy"], c, "true", nil)
	resident := memory(t)
	var deaf []net.Conn
	for range 8 {
		connection, _ := raw(t, c, "exec head -c 1000000000 /dev/zero", toWebSocket)
		deaf = append(deaf, connection)
	}
	time.Sleep(500 * time.Millisecond)
	if got := run(t, protocols["spdy"], c, "echo fine", nil); got.stdout != "fine\n" {
		t.Errorf("another client: %+v", got)
	}
	if now := memory(t); now > resident+24 {
		t.Errorf("the daemon grew from %d to %d MiB", resident, now)
	}
	for _, connection := range deaf {
		_ = connection.Close()
	}
	eventually(t, "the commands are gone", func() bool { return !strings.Contains(c.Sh("ps -o args"), "head -c") })
}
