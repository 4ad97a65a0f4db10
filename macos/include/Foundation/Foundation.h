// What csrc and torch's headers use of Foundation, for a build without Apple's SDK. Never used on a Mac.
// `make macos-check` compares every declaration here with what Apple's compiler recorded in published binaries.
#pragma once

#include <TargetConditionals.h>
#include <dispatch/dispatch.h>
#include <objc/NSObject.h>
#include <stddef.h>
#include <stdint.h>

// As in C++ on a Mac: an enumeration has its own type, a set of options is its integer.
#define NS_ENUM(type, name) \
  enum name : type name;    \
  enum name : type
#define NS_OPTIONS(type, name) \
  type name;                   \
  enum : type

@class NSArray, NSDictionary, NSError, NSString, NSURL;

typedef NS_ENUM(NSUInteger, NSStringEncoding) {
  NSUTF8StringEncoding = 4,
};

typedef struct {
  unsigned long state;
  id __unsafe_unretained* itemsPtr;
  unsigned long* mutationsPtr;
  unsigned long extra[5];
} NSFastEnumerationState;

@protocol NSFastEnumeration
- (NSUInteger)countByEnumeratingWithState:(NSFastEnumerationState*)state
                                  objects:(id __unsafe_unretained[])buffer
                                    count:(NSUInteger)len;
@end

@interface NSArray : NSObject <NSFastEnumeration>
+ (instancetype)arrayWithObject:(id)anObject;
@end

@interface NSString : NSObject
+ (instancetype)stringWithUTF8String:(const char*)nullTerminatedCString;
+ (instancetype)stringWithContentsOfFile:(NSString*)path
                                encoding:(NSStringEncoding)enc
                                   error:(__autoreleasing NSError**)error;
@property(readonly) const char* UTF8String;
@end

@interface NSURL : NSObject
+ (NSURL*)fileURLWithPath:(NSString*)path;
@end

@interface NSError : NSObject
@property(readonly, copy) NSString* localizedDescription;
@end
