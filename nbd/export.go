package nbd

// A Listing is what LIST tells a client about one export.
type Listing struct {
	Name        string // UTF-8, at most 4096 bytes; empty for the default export
	Description string // for people; may be empty
}

// An Export is one device opened for one connection.
type Export struct {
	Name        string // what NBD_INFO_NAME answers; may differ from the name asked for
	Description string // what NBD_INFO_DESCRIPTION answers; may be empty
	Device      Device

	// ReadOnly refuses writes before they reach the device.
	ReadOnly bool

	// Remote says that a read may wait for a network. The connection then
	// never serves one in its reader, so that others are not held up.
	Remote bool

	// Contexts are what the export can tell of its bytes beside what is data;
	// their names differ. Nil tells no more.
	Contexts []Context

	// Close is called once when the connection leaves the export; nil is
	// allowed. Leaving an export does not flush it, except in Shutdown.
	Close func() error
}
