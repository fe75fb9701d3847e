import Foundation

/// A newer version of the app made this. Replace nothing.
public struct AppOutdatedError: LocalizedError, Equatable {
    public init() {}
    public var errorDescription: String? { "A newer version of the app made this. Update the app." }
}

/// The blob is damaged, or it was made by another user or with another password.
public struct DamagedError: LocalizedError, Equatable {
    public init() {}
    public var errorDescription: String? { "This backup is damaged, or it was made with another password." }
}

/// A recovery code was mistyped, or it belongs to another username.
public struct MistypedCodeError: LocalizedError, Equatable {
    public init() {}
    public var errorDescription: String? { "This recovery code was mistyped, or it belongs to another username." }
}

/// Nothing is left of the username after normalisation: all people without a name would share an account.
public struct EmptyUsernameError: LocalizedError, Equatable {
    public init() {}
    public var errorDescription: String? { "The username is empty." }
}

/// The text has a lone surrogate, which has no UTF-8 form. Refuse it as a username or a password.
public struct LoneSurrogateError: LocalizedError, Equatable {
    public init() {}
    public var errorDescription: String? { "This text has a character that cannot be used here." }
}

/// There is no sequence after the largest. The person can delete the account and register it again.
public struct NoSequenceLeftError: LocalizedError, Equatable {
    public init() {}
    public var errorDescription: String? { "This account cannot store any more. Delete it and register it again." }
}
