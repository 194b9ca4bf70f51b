package storm

import (
	"math"
	"math/rand/v2"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// generator makes messages, and bends good ones. Words are what strings are taken from: names of things that exist, and
// texts that have broken other runtimes. Nothing else is ever written where a path may stand.
type generator struct {
	*rand.Rand
	words []string
	made  *made
}

// made are the ids of what the storm itself has made.
type made struct {
	sync.Mutex
	ids []string
}

func (m *made) add(id string) {
	m.Lock()
	defer m.Unlock()
	m.ids = append(m.ids, id)
}

func (m *made) pick(n int) string {
	m.Lock()
	defer m.Unlock()
	if len(m.ids) == 0 {
		return ""
	}
	return m.ids[n%len(m.ids)]
}

// any fills a message at random: each field is left out, or set to something of its type.
func (g *generator) any(message protoreflect.Message, depth int) {
	fields := message.Descriptor().Fields()
	for i := range fields.Len() {
		if g.IntN(3) == 0 || depth > 6 {
			continue
		}
		g.set(message, fields.Get(i), depth)
	}
}

func (g *generator) set(message protoreflect.Message, field protoreflect.FieldDescriptor, depth int) {
	switch {
	case field.IsMap():
		entries := message.NewField(field).Map()
		for range g.IntN(4) {
			key := g.scalar(field.MapKey()).MapKey()
			if field.MapValue().Kind() == protoreflect.MessageKind {
				value := entries.NewValue()
				g.any(value.Message(), depth+1)
				entries.Set(key, value)
			} else {
				entries.Set(key, g.scalar(field.MapValue()))
			}
		}
		message.Set(field, protoreflect.ValueOfMap(entries))
	case field.IsList():
		list := message.NewField(field).List()
		for range g.IntN(4) {
			if field.Kind() == protoreflect.MessageKind {
				element := list.NewElement()
				g.any(element.Message(), depth+1)
				list.Append(element)
			} else {
				list.Append(g.scalar(field))
			}
		}
		message.Set(field, protoreflect.ValueOfList(list))
	case field.Kind() == protoreflect.MessageKind:
		g.any(message.Mutable(field).Message(), depth+1)
	default:
		message.Set(field, g.scalar(field))
	}
}

var integers = []int64{0, 1, 2, 7, -1, 100, 1000, 65535, 65536, 1 << 20, math.MaxInt32, math.MinInt32, math.MaxUint32, math.MaxInt64, math.MinInt64}

func (g *generator) scalar(field protoreflect.FieldDescriptor) protoreflect.Value {
	number := integers[g.IntN(len(integers))]
	switch field.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(g.IntN(2) == 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(g.IntN(5) - 1)) // unknown ones among them
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(g.word())
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(g.word()))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind:
		return protoreflect.ValueOfInt32(int32(number))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(number))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(number))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(number))
	default:
		return protoreflect.ValueOfInt64(number)
	}
}

func (g *generator) word() string {
	if g.IntN(6) == 0 {
		return g.made.pick(g.Int())
	}
	return g.words[g.IntN(len(g.words))]
}

// bend changes a few fields of a good message, anywhere in it: cleared, or set to something else.
func (g *generator) bend(message proto.Message) {
	for range 1 + g.IntN(3) {
		at := message.ProtoReflect()
		for {
			fields := at.Descriptor().Fields()
			if fields.Len() == 0 {
				break
			}
			field := fields.Get(g.IntN(fields.Len()))
			if field.Kind() == protoreflect.MessageKind && !field.IsList() && !field.IsMap() && g.IntN(5) > 0 {
				at = at.Mutable(field).Message()
				continue
			}
			if g.IntN(4) == 0 {
				at.Clear(field)
			} else {
				g.set(at, field, 0)
			}
			break
		}
	}
}

// hostile are texts that have broken other runtimes.
var hostile = []string{"", ".", "..", "/", "../../../etc", "a/../../b", "/proc/self/fd/7", "/dev/null", "\x00", "a\x00b", "a\nb", "a\r\nroot::0:0",
	"-1", "4294967296", "0x0", "a=b", "net.ipv4.ip_forward", "kernel.core_pattern", "net/ipv4/ip_forward", "CAP_", "ALL", "SYS_ADMIN",
	"sha256:" + strings.Repeat("f", 64), "sha256:../..", "UPPER/case:1", "::1", "0.0.0.0", "256.1.1.1", "0-4096", "1,2,x", "9999999", "rw", "rwm", "x",
	"{{.}}", "%s%n", "ä\u202e", strings.Repeat("x", 300), strings.Repeat("y", 70_000), "/" + strings.Repeat("d/", 3000)}
