// Package wire proves that proto/cri/v1/api.proto is on the wire what k8s.io/cri-api v0.37.2 is.
//
// Our file is compiled here from its text; the other side is the descriptor that the kubelet itself
// links. Both are flattened into one line per fact (a field's number, type and cardinality, an enum's
// value, an RPC's types and streaming) and the two sets of lines must be equal.
package wire

import (
	"fmt"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Facts lists all that decides how a file's messages and services look on the wire, as "where: what".
// Options that have no effect on the wire (go_package, deprecation) are left out, syntax is not.
func Facts(file protoreflect.FileDescriptor) map[string]string {
	facts := map[string]string{"package": string(file.Package()), "syntax": file.Syntax().String()}
	enums(facts, file.Enums())
	messages(facts, file.Messages())
	for i := range file.Services().Len() {
		service := file.Services().Get(i)
		for j := range service.Methods().Len() {
			method := service.Methods().Get(j)
			facts["rpc "+string(method.FullName())] = fmt.Sprintf("(%s%s) returns (%s%s)",
				stream(method.IsStreamingClient()), method.Input().FullName(),
				stream(method.IsStreamingServer()), method.Output().FullName())
		}
	}
	return facts
}

func stream(yes bool) string {
	if yes {
		return "stream "
	}
	return ""
}

func enums(facts map[string]string, list protoreflect.EnumDescriptors) {
	for i := range list.Len() {
		enum := list.Get(i)
		for j := range enum.Values().Len() {
			value := enum.Values().Get(j)
			facts[fmt.Sprintf("enum %s.%s", enum.FullName(), value.Name())] = fmt.Sprint(value.Number())
		}
	}
}

func messages(facts map[string]string, list protoreflect.MessageDescriptors) {
	for i := range list.Len() {
		message := list.Get(i)
		facts["message "+string(message.FullName())] = "present"
		enums(facts, message.Enums())
		messages(facts, message.Messages())
		for j := range message.Fields().Len() {
			f := message.Fields().Get(j)
			facts["field "+string(f.FullName())] = field(f)
		}
	}
}

func field(f protoreflect.FieldDescriptor) string {
	kind := f.Kind().String()
	switch {
	case f.Message() != nil:
		kind += " " + string(f.Message().FullName())
	case f.Enum() != nil:
		kind += " " + string(f.Enum().FullName())
	}
	oneof := ""
	if f.ContainingOneof() != nil {
		oneof = " oneof " + string(f.ContainingOneof().Name())
	}
	return fmt.Sprintf("= %d %s %s packed=%t map=%t presence=%t json=%s%s",
		f.Number(), f.Cardinality(), kind, f.IsPacked(), f.IsMap(), f.HasPresence(), f.JSONName(), oneof)
}
